"""The waiting line of one game: first come, first served."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort

from tipoff_matchmaker.allocators.interface import Allocation, Seats


class Waiter:
    """One allocation on its way to seats: in line, or `staged` while its seats are being written.

    `seats` or `error` end the wait; `start_failed` is the latest reason why a server did not start.
    """

    __slots__ = (
        "_signalled",
        "_wake",
        "abandoned",
        "allocation",
        "error",
        "failures",
        "number",
        "seats",
        "since",
        "staged",
        "start_failed",
    )

    def __init__(self, number: int, allocation: Allocation, since: float) -> None:
        self.number = number
        self.allocation = allocation
        self.since = since
        self.seats: Seats | None = None
        self.error: Exception | None = None
        self.start_failed = ""
        self.staged = False
        self.failures = 0
        """How often the store did not take its seats."""
        self.abandoned = False
        self._signalled = False
        self._wake: asyncio.Future[None] | None = None

    def __lt__(self, other: Waiter) -> bool:
        return self.number < other.number

    def signal(self) -> None:
        """Something has changed: the one who waits looks again."""
        self._signalled = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def changed(self, timeout: float | None = None) -> None:
        """Until the next signal (or the one not yet noticed), or for `timeout` seconds. Cancelling is safe."""
        if not self._signalled:
            loop = asyncio.get_running_loop()
            self._wake = loop.create_future()
            timer = loop.call_later(timeout, self.signal) if timeout is not None else None
            try:
                await self._wake
            finally:
                if timer is not None:
                    timer.cancel()
        self._signalled = False


class Line:
    """Waiters in the order of their coming; those whose seats are staged are not in it."""

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def players(self) -> int:
        return sum(len(waiter.allocation.members) for waiter in self._waiters)

    @property
    def first(self) -> Waiter | None:
        return self._waiters[0] if self._waiters else None

    def client_ips(self, count: int) -> tuple[str, ...]:
        """Addresses of the first `count` waiters: whom a new server should be near."""
        found = [ip for waiter in self._waiters[:count] for ip in waiter.allocation.client_ips]
        return tuple(dict.fromkeys(found))

    def enter(self, allocation: Allocation, now: float) -> Waiter:
        self._numbers += 1
        waiter = Waiter(self._numbers, allocation, now)
        self._waiters.append(waiter)
        return waiter

    def pop(self) -> Waiter:
        return self._waiters.pop(0)

    def put_back(self, waiter: Waiter) -> None:
        """Into its old place: what it was promised did not come true."""
        insort(self._waiters, waiter)

    def remove(self, waiter: Waiter) -> None:
        at = bisect_left(self._waiters, waiter)
        if at < len(self._waiters) and self._waiters[at] is waiter:
            del self._waiters[at]

    def position(self, waiter: Waiter) -> int:
        """1 for the next one to be served."""
        return bisect_left(self._waiters, waiter) + 1

    def fail(self, error: Exception) -> int:
        """Everybody in line gets `error`; how many those were."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.error = error
            waiter.signal()
        return len(waiters)

    def announce(self, start_failed: str = "") -> None:
        """Everybody in line looks again, and hears why a server did not start."""
        for waiter in self._waiters:
            if start_failed:
                waiter.start_failed = start_failed
            waiter.signal()
