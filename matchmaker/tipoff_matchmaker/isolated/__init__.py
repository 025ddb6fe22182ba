"""Reads the events of untrusted game servers and writes for them."""
