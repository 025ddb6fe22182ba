"""Checks the assumptions about Edgegap at Edgegap itself, for `tipoff edgegap check --live`."""
