"""Receives play requests over NATS and answers them."""
