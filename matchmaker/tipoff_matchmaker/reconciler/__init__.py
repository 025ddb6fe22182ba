"""Compares the records with what really runs, and repairs the difference."""
