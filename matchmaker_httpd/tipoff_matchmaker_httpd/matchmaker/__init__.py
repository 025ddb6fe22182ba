"""Asks the matchmakers over NATS."""
