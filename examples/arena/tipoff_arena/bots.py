"""Steers squares that wander: the bots of a server, and scripted players.

A `Wanderer` is pure: the position of its square goes in once per tick, the keys it holds come out. The same seed and
positions always give the same walk.
"""

from __future__ import annotations

import random

from tipoff_arena.rules import Input, Point

_WAYS = (
    Input.LEFT,
    Input.RIGHT,
    Input.UP,
    Input.DOWN,
    Input.LEFT | Input.UP,
    Input.RIGHT | Input.UP,
    Input.LEFT | Input.DOWN,
    Input.RIGHT | Input.DOWN,
)


class Wanderer:
    """Walks one way for a while, and turns when a wall stops it. `patience` is in ticks."""

    def __init__(self, seed: int, *, patience: tuple[int, int] = (12, 70)) -> None:
        self._random = random.Random(seed)
        self._patience = patience
        self._ticks_left = 0
        self._held = Input.NONE
        self._last: Point | None = None

    def held(self, at: Point) -> Input:
        """The keys for the next tick, given where the square is now."""
        stopped = self._last is not None and self._held and at == self._last
        if stopped or self._ticks_left <= 0:
            self._held = self._random.choice([way for way in _WAYS if way != self._held])
            self._ticks_left = self._random.randint(*self._patience)
        self._ticks_left -= 1
        self._last = at
        return self._held
