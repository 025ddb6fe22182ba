"""Asks Edgegap for the state of deployments."""
