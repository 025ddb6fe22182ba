"""Checks and prepares an account, its application and its version."""
