"""Who may do what on NATS: the table of roles, and nats-server's configuration made from it."""
