"""Decides who may play, seats players and calls the game about them."""
