"""Finds out who a player is, from the credential in its request."""
