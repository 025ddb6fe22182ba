"""Decides who sits where, and keeps those who wait."""
