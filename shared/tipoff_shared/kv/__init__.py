"""Typed key-value buckets on NATS JetStream."""
