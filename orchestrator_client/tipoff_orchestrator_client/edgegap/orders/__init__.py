"""Orders one deployment once, and compares Edgegap's list with the orders."""
