"""Keeps the waiting line of each game: first come, first served."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Iterable

from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import GameKey


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

    def __init__(self, number: int, allocation: AllocationRequest, since: float) -> None:
        self.number = number
        self.allocation = allocation
        self.since = since
        self.seats: Seats | None = None
        self.error: Exception | None = None
        self.start_failed = ""
        self.staged = False
        self.failures = 0
        """How often its seats could not be written."""
        self.abandoned = False
        self._signalled = False
        self._wake: asyncio.Future[None] | None = None

    def __lt__(self, other: Waiter) -> bool:
        return self.number < other.number

    def signal(self) -> None:
        """Something has changed: the waiting caller looks again."""
        self._signalled = True
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def changed(self, timeout: float | None = None) -> None:
        """Wait for the next signal (or the one not yet noticed), or for `timeout` seconds. Cancelling is safe."""
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


class WaitingLine:
    """Waiters in the order of their arrival; those whose seats are staged are not in it."""

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._waiters)

    @property
    def players(self) -> int:
        """How many players wait."""
        return sum(len(waiter.allocation.members) for waiter in self._waiters)

    @property
    def first(self) -> Waiter | None:
        """The next one to be served."""
        return self._waiters[0] if self._waiters else None

    def client_ips(self, count: int) -> tuple[str, ...]:
        """Addresses of the first `count` waiters: a new server should be near them."""
        found = [ip for waiter in self._waiters[:count] for ip in waiter.allocation.client_ips]
        return tuple(dict.fromkeys(found))

    def enter(self, allocation: AllocationRequest, now: float) -> Waiter:
        """Join the end of the line. `now`: Unix seconds."""
        self._numbers += 1
        waiter = Waiter(self._numbers, allocation, now)
        self._waiters.append(waiter)
        return waiter

    def pop(self) -> Waiter:
        """Take the first one out."""
        return self._waiters.pop(0)

    def put_back(self, waiter: Waiter) -> None:
        """Return to the old place: the seats it was promised could not be written."""
        insort(self._waiters, waiter)

    def remove(self, waiter: Waiter) -> None:
        """Leave the line; idempotent."""
        at = bisect_left(self._waiters, waiter)
        if at < len(self._waiters) and self._waiters[at] is waiter:
            del self._waiters[at]

    def position(self, waiter: Waiter) -> int:
        """1 for the next one to be served."""
        return bisect_left(self._waiters, waiter) + 1

    def fail(self, error: Exception) -> int:
        """Answer everybody in line with `error`; returns how many those were."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.error = error
            waiter.signal()
        return len(waiters)

    def announce(self, start_failed: str = "") -> None:
        """Wake everybody in line, and tell them why a server did not start."""
        for waiter in self._waiters:
            if start_failed:
                waiter.start_failed = start_failed
            waiter.signal()


class WaitingLines:
    """The waiting line of each game whose seats we count. The allocator fills them; starts and failures wake them."""

    def __init__(self, games: Iterable[GameKey]) -> None:
        self._lines = {key: WaitingLine() for key in games}
        self.closed: TipoffError | None = None
        """The error for every waiter, once the lines are closed."""

    def __getitem__(self, key: GameKey) -> WaitingLine:
        return self._lines[key]

    def get(self, key: GameKey) -> WaitingLine | None:
        """None for a game that has no line here (it is not ours, or its seats are counted elsewhere)."""
        return self._lines.get(key)

    def close(self, error: TipoffError) -> None:
        """Answer everybody in line, and everybody who comes later, with `error`."""
        self.closed = error
        for line in self._lines.values():
            line.fail(error)
