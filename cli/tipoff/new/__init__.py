"""`tipoff new`: a small game to start from; `template/` holds its files."""
