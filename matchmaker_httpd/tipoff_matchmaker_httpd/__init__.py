"""Serves players who ask for a seat, over WebSocket and HTTP."""
