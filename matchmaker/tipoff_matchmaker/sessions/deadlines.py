"""Deadlines kept in memory: hints from this process's own writes. The listing of all sessions is the truth."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable

from tipoff_shared.errors import TipoffError


class Deadlines:
    """Calls `due(key)` soon after the time given for `key`; a later `add` for the same key replaces the time."""

    def __init__(self, clock: Callable[[], float], due: Callable[[str], Awaitable[None]]) -> None:
        self._clock = clock
        self._due = due
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._earlier = asyncio.Event()

    def __len__(self) -> int:
        return len(self._at)

    def add(self, key: str, at: float) -> None:
        """`at`: Unix seconds."""
        if self._at.get(key) == at:
            return
        self._at[key] = at
        heapq.heappush(self._heap, (at, key))
        if self._heap[0][0] >= at:
            self._earlier.set()

    def drop(self, key: str) -> None:
        self._at.pop(key, None)  # its place in the heap goes when its time comes
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._at):
            self._heap = [(at, key) for key, at in self._at.items()]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """When something is due, None when nothing is waited for."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    async def run(self) -> None:
        while True:
            at = self.next()
            self._earlier.clear()
            wait = None if at is None else at - self._clock()
            if wait is None or wait > 0:
                try:
                    async with asyncio.timeout(wait):
                        await self._earlier.wait()
                except TimeoutError:
                    pass
                continue
            _, key = heapq.heappop(self._heap)
            self._at.pop(key, None)
            try:
                await self._due(key)
            except TipoffError:
                self.add(key, self._clock() + 1.0)  # the store is away; once more
