"""Serves the endpoints, one module for each way in."""
