"""The allocator `edgegap-sessions`: Edgegap counts the seats."""
