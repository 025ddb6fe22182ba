"""Runs uvicorn's protocols with limits on time, size and number."""
