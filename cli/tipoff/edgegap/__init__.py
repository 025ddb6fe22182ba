"""The commands `tipoff edgegap ...`."""
