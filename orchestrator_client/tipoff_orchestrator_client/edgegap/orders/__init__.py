"""Orders each deployment once, and compares Edgegap's list with the orders."""
