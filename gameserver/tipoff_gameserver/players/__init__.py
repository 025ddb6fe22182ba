"""Who plays: admission, the roster, and the game's callbacks."""
