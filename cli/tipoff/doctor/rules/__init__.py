"""Judges the facts: pure functions from facts to findings."""
