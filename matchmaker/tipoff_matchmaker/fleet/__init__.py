"""Decides how many servers run; starts, watches and stops them."""
