"""Finds seats by Edgegap's v1 sessions: Edgegap counts the seats and starts the servers."""
