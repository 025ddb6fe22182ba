"""What runs game servers on this host."""
