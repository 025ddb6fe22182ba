"""Keeps the waiting line of each game: addresses take turns, and within an address the first comes first.

    turn    1        2        3                    parked: c
    line    a ─ b ─ d  ──>    a's first, b's first, d's first, a's second, b's second ...

Each address (see unclaimed.py) has its own queue, so that one which asks a thousand times delays another one by a
single turn. A request without an address has its own queue. A party is one waiter, and stays whole. A queue whose
address may take no further seat is parked until it may; the others go on.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TypeAlias

from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_shared.errors import TipoffError, UnknownGame
from tipoff_shared.games import GameKey, GamesChange, SomeGames

_QueueKey: TypeAlias = str | int
"""An address, or the number of the only waiter, who has none."""


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
        "turn",
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
        self.turn = 0
        """The turn it was taken out of the line with, or has been first with; 0 when it never was."""
        self._signalled = False
        self._wake: asyncio.Future[None] | None = None

    def __lt__(self, other: Waiter) -> bool:
        return self.number < other.number

    @property
    def queue_key(self) -> _QueueKey:
        """The queue it waits in."""
        return self.allocation.address or self.number

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


class _Queue:
    """The waiters of one address, in the order of their arrival. `turn` is its place among the queues."""

    __slots__ = ("parked_since", "players", "turn", "waiters")

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.waiters: list[Waiter] = []
        self.players = 0
        self.parked_since = 0.0
        """Since when its address could take no seat (Unix seconds); 0 when it could the last time."""

    def __lt__(self, other: _Queue) -> bool:
        return self.turn < other.turn


class WaitingLine:
    """Waiters in the order in which they are served; those whose seats are staged are not in it.

    Every operation makes logarithmically many comparisons at most, except those that look at all waiters (`announce`,
    `fail`, `players_within`).
    """

    def __init__(self) -> None:
        self._queues: dict[_QueueKey, _Queue] = {}
        self._ring: list[_Queue] = []
        """The queues that take turns, by turn."""
        self._parked: dict[_QueueKey, _Queue] = {}
        self._count = 0
        self._numbers = 0
        self._turns = 0

    def __len__(self) -> int:
        return self._count

    @property
    def players(self) -> int:
        """How many players wait."""
        return sum(queue.players for queue in self._queues.values())

    def players_within(self, room: Callable[[str], int]) -> int:
        """How many of the players that wait could get seats now, when an address may take `room(address)` of them."""
        return sum(
            queue.players if isinstance(key, int) else min(queue.players, room(key))
            for key, queue in self._queues.items()
        )

    @property
    def first(self) -> Waiter | None:
        """The next one to be served."""
        return self._ring[0].waiters[0] if self._ring else None

    def client_ips(self, count: int) -> tuple[str, ...]:
        """Addresses of the first waiters of the next `count` queues: a new server should be near them."""
        found = [ip for queue in self._ring[:count] for ip in queue.waiters[0].allocation.client_ips]
        return tuple(dict.fromkeys(found))

    def enter(self, allocation: AllocationRequest, now: float) -> Waiter:
        """Join the end of the queue of the same address, or the end of the line. `now`: Unix seconds."""
        self._numbers += 1
        waiter = Waiter(self._numbers, allocation, now)
        queue = self._queues.get(waiter.queue_key)
        if queue is None:
            queue = self._queues[waiter.queue_key] = _Queue(self._next_turn())
            self._ring.append(queue)
        queue.waiters.append(waiter)
        self._add(queue, waiter)
        return waiter

    def pop(self) -> Waiter:
        """Take the first one out; its queue goes to the end of the line."""
        queue = self._ring.pop(0)
        queue.parked_since = 0.0
        waiter = queue.waiters.pop(0)
        waiter.turn = queue.turn
        self._subtract(queue, waiter)
        if queue.waiters:
            queue.turn = queue.waiters[0].turn or self._next_turn()
            insort(self._ring, queue)
        else:
            del self._queues[waiter.queue_key]
        return waiter

    def put_back(self, waiter: Waiter) -> None:
        """Return to the old place, with the old turn: the seats it was promised could not be written."""
        key = waiter.queue_key
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(waiter.turn)
            insort(self._ring, queue)
        before = queue.waiters[0] if queue.waiters else None
        insort(queue.waiters, waiter)
        self._add(queue, waiter)
        if before is not None and queue.waiters[0] is waiter:
            before.turn = queue.turn
            self._move(key, queue, waiter.turn)

    def remove(self, waiter: Waiter) -> None:
        """Leave the line; idempotent."""
        key = waiter.queue_key
        queue = self._queues.get(key)
        at = -1 if queue is None else _index(queue.waiters, waiter)
        if queue is None or at < 0:
            return
        del queue.waiters[at]
        self._subtract(queue, waiter)
        if not queue.waiters:
            del self._queues[key]
            if self._parked.pop(key, None) is None:
                del self._ring[bisect_left(self._ring, queue)]

    def park(self, now: float) -> bool:
        """Let the first queue wait aside: its address may take no seat now. Returns whether that is new."""
        queue = self._ring.pop(0)
        self._parked[queue.waiters[0].queue_key] = queue
        new = not queue.parked_since
        queue.parked_since = queue.parked_since or now
        return new

    def unpark(self, address: str) -> bool:
        """Let the address's queue take turns again, where it stood; returns whether it was parked."""
        queue = self._parked.pop(address, None)
        if queue is None:
            return False
        insort(self._ring, queue)
        return True

    def parked_since(self, waiter: Waiter) -> float | None:
        """Since when (Unix seconds) the waiter's address could take no seat; None when it is not parked."""
        queue = self._parked.get(waiter.queue_key)
        return None if queue is None else queue.parked_since

    def position(self, waiter: Waiter) -> int:
        """1 for the next one to be served. For those behind the first of an address it may be too large, because other
        addresses may have fewer waiters."""
        queue = self._queues.get(waiter.queue_key)
        if queue is None:
            return 1
        at = max(0, _index(queue.waiters, waiter))
        return min(self._count, at * len(self._ring) + bisect_left(self._ring, queue) + 1)

    def fail(self, error: Exception) -> int:
        """Answer everybody in line with `error`; returns how many those were."""
        waiters = list(self._all())
        self._queues.clear()
        self._ring.clear()
        self._parked.clear()
        self._count = 0
        for waiter in waiters:
            waiter.error = error
            waiter.signal()
        return len(waiters)

    def announce(self, start_failed: str = "") -> None:
        """Wake everybody in line, and tell them why a server did not start."""
        for waiter in self._all():
            if start_failed:
                waiter.start_failed = start_failed
            waiter.signal()

    def _all(self) -> Iterator[Waiter]:
        for queue in self._queues.values():
            yield from queue.waiters

    def _next_turn(self) -> int:
        self._turns += 1
        return self._turns

    def _move(self, key: _QueueKey, queue: _Queue, turn: int) -> None:
        """Give the queue another turn."""
        if key in self._parked:
            queue.turn = turn
            return
        del self._ring[bisect_left(self._ring, queue)]
        queue.turn = turn
        insort(self._ring, queue)

    def _add(self, queue: _Queue, waiter: Waiter) -> None:
        queue.players += len(waiter.allocation.members)
        self._count += 1

    def _subtract(self, queue: _Queue, waiter: Waiter) -> None:
        queue.players -= len(waiter.allocation.members)
        self._count -= 1


def _index(waiters: list[Waiter], waiter: Waiter) -> int:
    """Where the waiter is in a list sorted by number; -1: nowhere."""
    at = bisect_left(waiters, waiter)
    return at if at < len(waiters) and waiters[at] is waiter else -1


_REMOVED = "this game or version was removed"


class WaitingLines:
    """The waiting line of each of `games`, those whose seats we count. The allocator fills them; starts and failures
    wake them. Players who wait for a game that is removed get `UnknownGame`."""

    def __init__(self, games: SomeGames) -> None:
        self._games = games
        self._lines: defaultdict[GameKey, WaitingLine] = defaultdict(WaitingLine)
        self.closed: TipoffError | None = None
        """The error for every waiter, once the lines are closed."""
        games.subscribe(self._games_changed)

    def __getitem__(self, key: GameKey) -> WaitingLine:
        """The game's line, also of a removed game: seats that were being written return there."""
        return self._lines[key]

    def get(self, key: GameKey) -> WaitingLine | None:
        """None for a game that has no line here (it is not ours, or its seats are counted elsewhere)."""
        return self[key] if key in self._games else None

    def refusal(self, key: GameKey) -> TipoffError | None:
        """The error for everybody who waits for this game; None while they may wait."""
        return self.closed or (None if key in self._games else UnknownGame(_REMOVED))

    def _games_changed(self, change: GamesChange) -> None:
        for game in change.removed:
            if (line := self._lines.get(game.key)) is not None:
                line.fail(UnknownGame(_REMOVED))

    def close(self, error: TipoffError) -> None:
        """Answer everybody in line, and everybody who comes later, with `error`."""
        self.closed = error
        for line in self._lines.values():
            line.fail(error)
