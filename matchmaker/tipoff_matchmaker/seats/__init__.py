"""Who sits where, and who waits."""
