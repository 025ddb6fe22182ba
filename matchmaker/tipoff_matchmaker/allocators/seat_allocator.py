"""Finds seats in our own deployment records, on servers that the planner starts when there are too few.

A caller stands in the line of its game. As long as the first in line fits somewhere, it gets a seat staged on the
fullest such server; all that is staged on one server at one moment is one write (see deployments/store.py). A seat
counts as taken from the moment it is staged, so nothing is promised twice; a waiter that a lost race left without a
seat returns to its place in the line. An address that holds as many unclaimed seats as it may waits until it holds
fewer (see sessions/claim_limit.py); the others go on. A game may want its rooms filled (see room_filling.py).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial

from tipoff_matchmaker.allocators.interface import Progress, Step
from tipoff_matchmaker.allocators.packing import Packing
from tipoff_matchmaker.allocators.room_filling import RoomFilling
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord, NoSeat
from tipoff_matchmaker.fleet.planner import Planner
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_matchmaker.seats.rules import free_seats, leave, take
from tipoff_matchmaker.seats.waiting_line import Waiter, WaitingLine, WaitingLines
from tipoff_matchmaker.sessions.claim_limit import ClaimLimit
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import TipoffError, Unavailable, UnknownGame
from tipoff_shared.games import GameKey
from tipoff_shared.primitives.retry import backoff
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord

log = logging.getLogger(__name__)

_STORE_TRIES = 8
"""Writes of a waiter's seats that may fail before it is answered 503: ten to twenty seconds."""


class _Claim:
    """A change of a deployment's record: seats for `members`. `shared`: whether one of them sat there already when it
    was applied last."""

    def __init__(self, members: tuple[str, ...], until: float) -> None:
        self.members = members
        self.until = until
        self.shared = False

    def __call__(self, record: DeploymentRecord) -> DeploymentRecord:
        self.shared = any(member in record.seats for member in self.members)
        return take(record, self.members, self.until)


class SeatAllocator:
    """The `Allocator` of all games whose seats we count."""

    def __init__(
        self,
        deployments: DeploymentStore,
        trust: Trust,
        lines: WaitingLines,
        planner: Planner,
        claims: ClaimLimit,
        rooms: RoomFilling,
        tasks: Tasks,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._deployments = deployments
        self._trust = trust
        self._lines = lines
        self._planner = planner
        self._claims = claims
        self._rooms = rooms
        self._tasks = tasks
        self._settings = settings
        self._clock = clock
        self._packing: defaultdict[GameKey, Packing] = defaultdict(Packing)
        """Also of games that nobody can play here: their servers count when the games come."""
        self._staged: Counter[str] = Counter()
        self._tickets = itertools.cycle(range(1000))
        self._filling: set[GameKey] = set()
        """Games whose first in line waits for a promised seat, though an empty room is there."""
        deployments.subscribe(self._deployment_changed)
        trust.subscribe(self._trust_changed)
        claims.subscribe(self._room_changed)
        rooms.subscribe(self._fewer_promised)

    def close(self, error: TipoffError) -> None:
        """Answer everybody in line, and everybody who comes later, with `error`."""
        self._lines.close(error)

    async def settle(self, timeout: float) -> None:
        """Nothing to wait for: seats that are being written are undone by tasks of their own, or expire."""

    async def allocate(self, allocation: AllocationRequest) -> AsyncGenerator[Step, None]:
        """Stand in the game's line until seats are written. Raises `UnknownGame`, the error that closed the line, or
        `SlowDown` when the address holds as many unclaimed seats as it may and claims none of them."""
        key = allocation.key
        line = self._lines.get(key)
        if line is None:
            raise UnknownGame("unknown game or version")
        if self._lines.closed is not None:
            raise self._lines.closed
        waiter = line.enter(allocation, self._clock())
        delivered = False
        try:
            self._pump(key)
            if waiter.staged:
                await waiter.changed()
            while (seats := waiter.seats) is None:
                if waiter.error is not None:
                    raise waiter.error
                if (parked_since := line.parked_since(waiter)) is not None:
                    self._claims.refuse_if_waited(allocation, parked_since)
                start_failed, waiter.start_failed = waiter.start_failed, ""
                yield Progress(self._explain(line, waiter, start_failed), start_failed)
                if waiter.seats is None and waiter.error is None:
                    self._planner.want(key)
                    filling = key in self._filling
                    pause = self._settings.progress_interval
                    await waiter.changed(min(pause, self._rooms.next_look(key)) if filling else pause)
                    if filling and waiter.seats is None:
                        await self._rooms.check(key)
                        self._pump(key)
                    if line.parked_since(waiter) is not None:
                        await self._claims.check(allocation.address, key)
                        self._room_changed(allocation.address, key)
            delivered = True
            yield seats
        finally:
            if not delivered:
                waiter.abandoned = True
                line.remove(waiter)
                if waiter.seats is not None:
                    self._undo(waiter.seats)

    async def undo(self, seats: Seats) -> None:
        """Take the seats out of the server's record, unless they are shared. After a failed write they expire."""
        self._claims.drop(seats.members)
        if seats.shared:
            return
        now = self._clock()
        try:
            await self._deployments.change(
                seats.deployment.id, lambda record: leave(record, seats.members, now, until=seats.until)
            )
        except NoRecord:
            return
        except TipoffError as exc:
            log.info("a seat on %s is left to its deadline: %s", seats.deployment.id, exc)

    async def release(self, allocation_id: str, member: str, *, deployment_id: str) -> None:
        """Take the member's seat out of the server's record."""
        if not deployment_id:
            return
        now = self._clock()
        with suppress(NoRecord):  # the server is gone, and its seats with it
            await self._deployments.change(deployment_id, lambda record: leave(record, (member,), now))

    async def sessions(self) -> set[str] | None:
        """The sessions that hold a seat in any deployment record."""
        return {seat for entry in self._deployments.entries.values() for seat in entry.value.seats}

    # Staging.

    def _pump(self, key: GameKey) -> None:
        """Stage seats for as many of the line as fit, in order; park the queues of addresses without room."""
        line, packing = self._lines[key], self._packing[key]
        self._filling.discard(key)
        fills = self._rooms.fills(key)
        while (waiter := line.first) is not None:
            if not self._claims.may_take(waiter.allocation):
                if line.park(self._clock()):
                    self._claims.limited(waiter.allocation)
                continue
            deployment_id = packing.pick(len(waiter.allocation.members), same_everywhere=fills)
            if deployment_id is None:
                return
            if (
                fills
                and self._is_empty(deployment_id)
                and not self._rooms.may_open(key, line.players, staged=self._staged_of(key))
            ):
                self._filling.add(key)
                return
            line.pop()
            self._stage(waiter, deployment_id)

    def _staged_of(self, key: GameKey) -> int:
        """Seats of the game that are being written."""
        records = (
            (self._deployments.get(deployment_id), count) for deployment_id, count in self._staged.items()
        )
        return sum(count for record, count in records if record and (record.game, record.version) == key)

    def _is_empty(self, deployment_id: str) -> bool:
        record = self._deployments.get(deployment_id)
        return (record is None or not record.seats) and not self._staged[deployment_id]

    def _stage(self, waiter: Waiter, deployment_id: str) -> None:
        members = waiter.allocation.members
        waiter.staged = True
        self._staged[deployment_id] += len(members)
        self._recount(deployment_id)
        # The fraction makes it differ from what others write for the same member: by it `leave` finds this seat.
        until = round(self._clock() + self._settings.seat_hold, 3) + next(self._tickets) * 1e-6
        claim = _Claim(members, until)
        self._claims.hold(waiter.allocation, until)
        written = self._deployments.change(deployment_id, claim)
        written.add_done_callback(partial(self._written, waiter, deployment_id, claim))

    def _written(
        self, waiter: Waiter, deployment_id: str, claim: _Claim, written: asyncio.Future[DeploymentRecord]
    ) -> None:
        members = waiter.allocation.members
        waiter.staged = False
        self._staged[deployment_id] -= len(members)
        if not self._staged[deployment_id]:
            del self._staged[deployment_id]
        self._recount(deployment_id)
        error = written.exception()
        if error is None:
            seats = Seats(members, written.result(), claim.until, claim.shared)
            if waiter.abandoned:
                self._undo(seats)
            else:
                waiter.seats = seats
                waiter.signal()
            return
        self._claims.drop(members)
        if waiter.abandoned:
            return
        if (refusal := self._lines.refusal(waiter.allocation.key)) is not None:
            waiter.error = refusal
        elif isinstance(error, NoSeat | NoRecord):
            self._lines[waiter.allocation.key].put_back(waiter)
            self._pump(waiter.allocation.key)
        elif isinstance(error, Unavailable) and waiter.failures < _STORE_TRIES:
            # NATS is away: wait for it in the line.
            waiter.failures += 1
            key = waiter.allocation.key
            self._lines[key].put_back(waiter)
            asyncio.get_running_loop().call_later(
                backoff(waiter.failures, self._settings.backoff), self._pump, key
            )
        elif isinstance(error, Exception):
            waiter.error = error
        if not waiter.staged:
            waiter.signal()

    def _recount(self, deployment_id: str) -> None:
        record = self._deployments.get(deployment_id)
        if record is not None:
            self._count(record)

    def _undo(self, seats: Seats) -> None:
        self._tasks.start(self.undo(seats), f"undo/{seats.deployment.id}")

    # What changes how many seats are free.

    def _deployment_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        key = (after.game, after.version)
        self._count(after)
        if self._lines.get(key):
            self._pump(key)

    def _trust_changed(self, deployment_id: str) -> None:
        record = self._deployments.get(deployment_id)
        if record is not None:
            self._deployment_changed(record, record)

    def _room_changed(self, address: str, key: GameKey) -> None:
        """The address may have room for another unclaimed seat."""
        line = self._lines.get(key)
        if line is not None and line.unpark(address):
            self._pump(key)

    def _fewer_promised(self, key: GameKey) -> None:
        """Who waits for a promised seat may open an empty room, if that one is claimed."""
        if self._lines.get(key):
            self._pump(key)

    def _count(self, record: DeploymentRecord) -> None:
        free = free_seats(record) - self._staged[record.id] if record.id in self._trust else 0
        self._packing[(record.game, record.version)].set(record.id, free)

    def _explain(self, line: WaitingLine, waiter: Waiter, start_failed: str) -> str:
        if line.parked_since(waiter) is not None:
            return "Other players at your address have seats; waiting until one of them has connected"
        if waiter.allocation.key in self._filling:
            return (
                "A seat waits for a player who has not connected yet; waiting for that or for an empty room"
            )
        return self._planner.explain(
            waiter.allocation.key,
            waited=self._clock() - waiter.since,
            position=line.position(waiter),
            start_failed=start_failed,
        )
