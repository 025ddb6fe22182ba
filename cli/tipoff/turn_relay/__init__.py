"""Clients of the turn relay: `client` speaks its JSON API, `pipe` is `tipoff relay`, `load` is `tipoff bench`."""
