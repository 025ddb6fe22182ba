"""Back ends: how game servers run on this host (processes, or Docker containers)."""
