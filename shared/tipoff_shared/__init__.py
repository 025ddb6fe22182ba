"""What every part of tipoff shares: the wire's messages and names, records, NATS, netcode."""
