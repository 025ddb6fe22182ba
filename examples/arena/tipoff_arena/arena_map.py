"""Builds the map of every arena server, in units; one square is one unit wide.

Four mirrored quarters around a block in the middle. Every corridor is at least two units wide.
"""

from __future__ import annotations

from tipoff_arena.rules import Arena, Point, Rect

WIDTH = 48.0
HEIGHT = 27.0

_QUARTER = (
    Rect(6.0, 5.0, 13.0, 6.0),
    Rect(6.0, 5.0, 7.0, 10.0),
    Rect(11.0, 9.0, 12.0, 12.0),
    Rect(17.0, 2.5, 18.0, 8.5),
    Rect(17.0, 8.5, 21.0, 9.5),
)
_MIDDLE = (Rect(22.5, 12.0, 25.5, 15.0), Rect(2.5, 13.0, 6.0, 14.0), Rect(42.0, 13.0, 45.5, 14.0))
_SPAWNS = (Point(3.0, 3.0), Point(15.0, 7.5), Point(9.0, 11.5), Point(22.0, 6.0))


def _mirrored(rect: Rect) -> tuple[Rect, ...]:
    """`rect` in all four quarters."""
    left, top, right, bottom = rect
    return (
        rect,
        Rect(WIDTH - right, top, WIDTH - left, bottom),
        Rect(left, HEIGHT - bottom, right, HEIGHT - top),
        Rect(WIDTH - right, HEIGHT - bottom, WIDTH - left, HEIGHT - top),
    )


def standard_arena() -> Arena:
    """The map: 48 x 27 units, walls and sixteen places to start from."""
    walls = tuple(copy for rect in _QUARTER for copy in _mirrored(rect)) + _MIDDLE
    spawns = (
        *_SPAWNS,
        *(Point(WIDTH - x, HEIGHT - y) for x, y in _SPAWNS),
        *(Point(WIDTH - x, y) for x, y in _SPAWNS),
        *(Point(x, HEIGHT - y) for x, y in _SPAWNS),
    )
    return Arena(width=WIDTH, height=HEIGHT, walls=walls, spawns=spawns)
