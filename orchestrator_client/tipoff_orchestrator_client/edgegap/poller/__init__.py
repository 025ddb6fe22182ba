"""Polls Edgegap for what is waited for, and keeps what it answered."""
