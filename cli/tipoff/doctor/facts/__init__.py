"""Reads the facts that the doctor judges: I/O, no opinions."""
