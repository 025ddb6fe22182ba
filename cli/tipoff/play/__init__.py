"""`tipoff play`: players without a screen."""
