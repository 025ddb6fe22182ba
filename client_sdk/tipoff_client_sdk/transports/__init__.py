"""Turns a connect token into a connection: over UDP (netcode) or WebSocket."""
