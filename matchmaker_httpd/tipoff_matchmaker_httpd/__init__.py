"""Where players ask for a seat: by WebSocket or HTTP, answered over NATS."""
