"""Finds seats for players."""
