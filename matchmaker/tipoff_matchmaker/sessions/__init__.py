"""The life of one player's session."""
