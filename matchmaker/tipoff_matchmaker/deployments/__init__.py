"""The record of one game server: its rules, its store, its limits."""
