"""Starts and stops game servers through one interface, whichever service runs them."""
