"""Reports to the rest of the system that a game server lives and who plays on it."""
