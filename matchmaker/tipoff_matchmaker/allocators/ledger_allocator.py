"""The usual allocator: seats from our own ledger, on servers that the fleet starts when there are too few.

Whoever asks stands in the line of its game. As long as the first in line fits somewhere, it gets a seat staged on the
fullest such server; all that is staged on one server at one moment is one write (see ledger.py). A seat counts as
taken from the moment it is staged, so nothing is promised twice; whom a lost race left without one goes back to its
place in the line.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial

from tipoff_matchmaker.allocators.interface import Allocation, Progress, Seats, Step
from tipoff_matchmaker.backoff import pause
from tipoff_matchmaker.deployments.store import Ledger, NoRecord
from tipoff_matchmaker.fleet.planner import Fleet
from tipoff_matchmaker.seats.rules import NoSeat, Packing, free_seats, leave, take
from tipoff_matchmaker.seats.waiting_line import Line, Waiter
from tipoff_shared.errors import TipoffError, Unavailable, UnknownGame
from tipoff_shared.games import GameKey
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord

log = logging.getLogger(__name__)

_STORE_PAUSE = 0.2
_STORE_TRIES = 8
"""Writes of one's seats that may fail before one is told (503): ten to twenty seconds."""


class _Claim:
    """A change of the ledger: seats for `members`. Remembers of its last use whether one sat there already."""

    def __init__(self, members: tuple[str, ...], until: float) -> None:
        self.members = members
        self.until = until
        self.shared = False

    def __call__(self, record: DeploymentRecord) -> DeploymentRecord:
        self.shared = any(member in record.seats for member in self.members)
        return take(record, self.members, self.until)


class SeatAllocator:
    """`Allocator` on the ledger. `trusted` says which servers may get players now: those confirmed alive."""

    def __init__(
        self,
        ledger: Ledger,
        fleet: Fleet,
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        trusted: Callable[[str], bool],
        seat_hold: float,
        progress_interval: float,
    ) -> None:
        self._ledger = ledger
        self._fleet = fleet
        self._tasks = tasks
        self._clock = clock
        self._trusted = trusted
        self._seat_hold = seat_hold
        self._progress_interval = progress_interval
        self._lines: dict[GameKey, Line] = {game.key: Line() for game in fleet.games}
        self._packing: dict[GameKey, Packing] = {game.key: Packing() for game in fleet.games}
        self._staged: Counter[str] = Counter()
        self._tickets = itertools.cycle(range(1000))
        self._closed: TipoffError | None = None
        ledger.listen(self._ledger_changed)

    def line(self, key: GameKey) -> Line:
        return self._lines[key]

    def close(self, error: TipoffError) -> None:
        """Everybody in line, and everybody who asks from now on, gets `error`."""
        self._closed = error
        for line in self._lines.values():
            line.fail(error)

    def refresh(self, deployment_id: str) -> None:
        """Whether the deployment is trusted has changed."""
        record = self._ledger.get(deployment_id)
        if record is not None:
            self._ledger_changed(record, record)

    async def allocate(self, allocation: Allocation) -> AsyncGenerator[Step, None]:
        key = allocation.key
        line = self._lines.get(key)
        if line is None:
            raise UnknownGame("unknown game or version")
        if self._closed is not None:
            raise self._closed
        waiter = line.enter(allocation, self._clock())
        delivered = False
        try:
            self._pump(key)
            if waiter.staged:
                await waiter.changed()
            while (seats := waiter.seats) is None:
                if waiter.error is not None:
                    raise waiter.error
                start_failed, waiter.start_failed = waiter.start_failed, ""
                yield Progress(self._explain(line, waiter, start_failed), start_failed)
                if waiter.seats is None and waiter.error is None:
                    self._fleet.want(key)
                    await waiter.changed(self._progress_interval)
            delivered = True
            yield seats
        finally:
            if not delivered:
                waiter.abandoned = True
                line.remove(waiter)
                if waiter.seats is not None:
                    self._undo(waiter.seats)

    async def undo(self, seats: Seats) -> None:
        if seats.shared:
            return
        now = self._clock()
        try:
            await self._ledger.change(
                seats.deployment.id, lambda record: leave(record, seats.members, now, until=seats.until)
            )
        except NoRecord:
            return
        except TipoffError as exc:
            log.info("a seat on %s is left to its deadline: %s", seats.deployment.id, exc)

    async def release(self, allocation_id: str, member: str, *, deployment_id: str) -> None:
        if not deployment_id:
            return
        now = self._clock()
        with suppress(NoRecord):  # the whole server is gone, and its seats with it
            await self._ledger.change(deployment_id, lambda record: leave(record, (member,), now))

    async def sessions(self) -> set[str] | None:
        return {seat for entry in self._ledger.entries.values() for seat in entry.value.seats}

    # Staging.

    def _pump(self, key: GameKey) -> None:
        """Stage seats for as many of the line as fit, in order."""
        line, packing = self._lines[key], self._packing[key]
        while (waiter := line.first) is not None:
            deployment_id = packing.pick(len(waiter.allocation.members))
            if deployment_id is None:
                return
            line.pop()
            self._stage(waiter, deployment_id)

    def _stage(self, waiter: Waiter, deployment_id: str) -> None:
        members = waiter.allocation.members
        waiter.staged = True
        self._staged[deployment_id] += len(members)
        self._count(deployment_id)
        # The fraction makes it differ from what others write for the same member: `leave` tells this very seat.
        until = round(self._clock() + self._seat_hold, 3) + next(self._tickets) * 1e-6
        claim = _Claim(members, until)
        written = self._ledger.change(deployment_id, claim)
        written.add_done_callback(partial(self._written, waiter, deployment_id, claim))

    def _written(
        self, waiter: Waiter, deployment_id: str, claim: _Claim, written: asyncio.Future[DeploymentRecord]
    ) -> None:
        members = waiter.allocation.members
        waiter.staged = False
        self._staged[deployment_id] -= len(members)
        if not self._staged[deployment_id]:
            del self._staged[deployment_id]
        self._count(deployment_id)
        error = written.exception()
        if error is None:
            seats = Seats(members, written.result(), claim.until, claim.shared)
            if waiter.abandoned:
                self._undo(seats)
            else:
                waiter.seats = seats
                waiter.signal()
            return
        if waiter.abandoned:
            return
        if self._closed is not None:
            waiter.error = self._closed
        elif isinstance(error, NoSeat | NoRecord):
            self._lines[waiter.allocation.key].put_back(waiter)
            self._pump(waiter.allocation.key)
        elif isinstance(error, Unavailable) and waiter.failures < _STORE_TRIES:
            # The store is away: the line is where to wait for it.
            waiter.failures += 1
            key = waiter.allocation.key
            self._lines[key].put_back(waiter)
            asyncio.get_running_loop().call_later(pause(waiter.failures, _STORE_PAUSE), self._pump, key)
        elif isinstance(error, Exception):
            waiter.error = error
        if not waiter.staged:
            waiter.signal()

    def _undo(self, seats: Seats) -> None:
        self._tasks.start(self.undo(seats), f"undo/{seats.deployment.id}")

    # What the ledger says.

    def _ledger_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        key = (after.game, after.version)
        line = self._lines.get(key)
        if line is None:
            return  # a game of somebody else's games.toml
        free = free_seats(after) - self._staged[after.id] if self._trusted(after.id) else 0
        self._packing[key].set(after.id, free)
        if line:
            self._pump(key)

    def _count(self, deployment_id: str) -> None:
        record = self._ledger.get(deployment_id)
        if record is None:
            return
        free = free_seats(record) - self._staged[deployment_id] if self._trusted(deployment_id) else 0
        self._packing[(record.game, record.version)].set(deployment_id, free)

    def _explain(self, line: Line, waiter: Waiter, start_failed: str) -> str:
        return self._fleet.explain(
            waiter.allocation.key,
            waited=self._clock() - waiter.since,
            position=line.position(waiter),
            start_failed=start_failed,
        )
