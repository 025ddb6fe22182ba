"""Asks the matchmakers over NATS and merges their answers."""
