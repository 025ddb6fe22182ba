"""Who may do what on NATS: `permissions.py` is the table, `users.py` and `isolated.py` write it for nats-server."""
