"""Small building blocks that every package uses."""
