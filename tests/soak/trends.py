"""Fits lines to what was measured over time: how much a process grows in an hour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]
"""(seconds, value)."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A least-squares line: `per_hour` is its slope, `error` the slope's standard error, both in units per hour.

    `first` and `last` are the means of the first and last fifth of the points, `seconds` is the time they span.
    """

    per_hour: float
    error: float
    first: float
    last: float
    seconds: float
    count: int


def trend(points: Sequence[Point]) -> Trend:
    """The line through at least three points at different times. Raises `ValueError` for fewer."""
    count = len(points)
    if count < 3:
        raise ValueError(f"a trend needs at least three points, not {count}")
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        raise ValueError("a trend needs points at different times")
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    residue = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    error = math.sqrt(residue / (count - 2) / spread)
    fifth = max(1, count // 5)
    ordered = [y for _, y in sorted(points)]
    times = [x for x, _ in points]
    return Trend(
        slope * 3600,
        error * 3600,
        sum(ordered[:fifth]) / fifth,
        sum(ordered[-fifth:]) / fifth,
        max(times) - min(times),
        count,
    )


def covers(points: Sequence[Point], begin: float, end: float, part: float = 0.9) -> bool:
    """Whether the points span at least `part` of the time from `begin` to `end`."""
    inside = [x for x, _ in points if begin <= x <= end]
    return len(inside) >= 3 and max(inside) - min(inside) >= part * (end - begin)
