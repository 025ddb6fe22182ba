"""Decides which pages may ask for a seat."""
