"""Gives servers made for Edgegap, bevygap's among them, what Edgegap would give them."""
