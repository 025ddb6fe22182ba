"""Carries players' messages: one driver per kind of socket, all for one roster.

A listener checks who comes (`TokenCheck`), takes a seat in the `Roster`, and passes on what happens. It never waits for
the game and never makes the game wait.
"""
