"""The example game: authoritative squares in a walled map. Start reading at `rules.py`."""
