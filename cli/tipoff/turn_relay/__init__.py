"""The turn relay from the other side: `client.py` speaks its JSON, `pipe.py` is `tipoff relay`, `load.py` is
`tipoff bench`."""
