"""Edgegap's rate limits, at their strictest reading: at most so many requests within any second. Pure.

Edgegap tells the numbers, not how it counts. A sliding window refuses whatever any other way of counting refuses.
"""

from __future__ import annotations

from collections import deque

WINDOW = 1.0
RATES = {"deploy": 40, "status": 20, "list": 10}
"""Requests a second, by operation; the others have no limit that we know of."""


class SlidingWindow:
    """At most `rate` accepted requests in any `WINDOW` seconds; refused ones do not count."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._accepted: deque[float] = deque()

    def accept(self, now: float) -> bool:
        while self._accepted and now - self._accepted[0] >= WINDOW:
            self._accepted.popleft()
        if len(self._accepted) >= self._rate:
            return False
        self._accepted.append(now)
        return True
