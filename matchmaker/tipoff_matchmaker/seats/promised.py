"""Counts, purely, the seats of one game that wait for players who have not connected yet.

A seat is promised from when it is written into a server's record until its player connects, it is freed, or its claim
time is over. Whether a player has connected, a process may learn late: then the seat counts for a while longer.
Times are Unix seconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping


class PromisedSeats:
    """The promised seats that this process knows of. Every operation takes time in proportion to what changed, except
    `waiting` and `oldest`, which look at all of them.

    `hold`: how long a seat waits for its player; `written_ahead`: by how much a seat's time in a server's record is
    later than its promise.
    """

    def __init__(self, *, hold: float, written_ahead: float) -> None:
        self._hold = hold
        self._ahead = written_ahead
        self._held: dict[str, tuple[str, float]] = {}
        self._ends: list[tuple[float, str]] = []

    def changed(
        self, deployment_id: str, before: Mapping[str, float], after: Mapping[str, float], now: float
    ) -> None:
        """Take in the seats of a server's record as they were and as they are."""
        for session_id, until in after.items():
            if before.get(session_id) == until:
                continue
            ends = min(now, until - self._ahead) + self._hold
            if ends > now:
                self._keep(session_id, deployment_id, ends)
        for session_id in before.keys() - after.keys():
            self._held.pop(session_id, None)

    def still(self, session_id: str, until: float) -> None:
        """The session's player has not connected yet, and may: a known seat counts until `until` at least."""
        known = self._held.get(session_id)
        if known is not None and known[1] < until:
            self._keep(session_id, known[0], until)

    def claimed(self, session_id: str) -> bool:
        """The session's player has connected; whether its seat counted as promised until now."""
        return self._held.pop(session_id, None) is not None

    def waiting(self, is_open: Callable[[str], bool], now: float) -> int:
        """How many seats wait for their players on servers that others may come to, by `is_open(deployment_id)`."""
        self._expire(now)
        return sum(is_open(deployment_id) for deployment_id, _ in self._held.values())

    def next_end(self, now: float) -> float:
        """When the next seat may stop to count by itself, after `now`; infinity while none is promised."""
        self._expire(now)
        return self._ends[0][0] if self._ends else math.inf

    def oldest(self, most: int, now: float) -> list[str]:
        """The sessions of the first `most` promised seats."""
        self._expire(now)
        return [session_id for session_id, _ in zip(self._held, range(most), strict=False)]

    def _keep(self, session_id: str, deployment_id: str, ends: float) -> None:
        self._held[session_id] = (deployment_id, ends)
        heapq.heappush(self._ends, (ends, session_id))

    def _expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            ends, session_id = heapq.heappop(self._ends)
            known = self._held.get(session_id)
            if known is not None and known[1] == ends:
                del self._held[session_id]
