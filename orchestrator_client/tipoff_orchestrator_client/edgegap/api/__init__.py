"""Edgegap's HTTP API as typed calls."""
