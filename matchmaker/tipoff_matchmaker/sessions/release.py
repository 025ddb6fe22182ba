"""Gives back what an ended session held: its seat and its entries in bevygap's buckets; then its record is `gone`.

Each session is released by its own task, a bounded number at once. What a crash leaves undone is found by the
session's record, which says `closing`: through the delete queue at once, through the reconciler in any case.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.sessions.server_gone import EVERYTHING
from tipoff_matchmaker.sessions.state_machine import Released
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import Games
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import SessionRecord

log = logging.getLogger(__name__)

_AT_ONCE = 200
_REMEMBERED = 5000


class SeatOwner(Protocol):
    """Where seats are given back: the allocator of the session's game."""

    async def release_seat(self, session: SessionRecord) -> None:
        """Give back the seat of an ended session; idempotent. Raises `TipoffError`."""
        ...


class Releaser:
    """`start` is idempotent: one release for each session at a time, and each step may be repeated."""

    def __init__(
        self,
        bus: Bus,
        buckets: Buckets,
        games: Games,
        sessions: SessionStore,
        seats: SeatOwner,
        tasks: Tasks,
    ) -> None:
        self._bus = bus
        self._buckets = buckets
        self._games = games
        self._sessions = sessions
        self._seats = seats
        self._tasks = tasks
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._releases = SingleFlight[str, None]("release", begin=tasks.start)
        self._done: dict[str, None] = {}
        """The latest sessions finished here, so that our own hints cost no reading."""

    def start(self, session_id: str, record: SessionRecord | None) -> None:
        """Begin to release the session; nothing when there is no record, or its release is on its way."""
        if record is not None:
            self._releases.start(session_id, lambda: self._run(record))

    async def finish(self, record: SessionRecord) -> None:
        """Release the session and return when that has ended, also by an error. Raises `Unavailable` when
        this process stops. Cancelling is safe."""
        await self._releases.run(record.id, lambda: self._run(record))

    def handles(self, session_id: str) -> bool:
        """Whether this process releases the session, or has done so lately."""
        return session_id in self._releases or session_id in self._done

    def claimed(self, session_id: str, record: SessionRecord | None) -> None:
        """The player has connected: remove bevygap's entry of the unclaimed session."""
        if record is not None and self._is_bevygap(record):
            self._tasks.start(self._unclaim(session_id), f"claimed/{session_id}")

    def _is_bevygap(self, record: SessionRecord) -> bool:
        game = self._games.get(record.game, record.version)
        return game is not None and game.bevygap

    async def _unclaim(self, session_id: str) -> None:
        try:
            await self._buckets.unclaimed_sessions.forget(session_id, EVERYTHING)
        except TipoffError as exc:
            log.info("session %s still counts as unclaimed: %s", session_id, exc)

    async def _run(self, record: SessionRecord) -> None:
        try:
            async with self._room:
                # A hint to the reader of the delete queue, should this process die before the next line.
                await self._bus.publish(self._bus.subjects.delete_queue(record.id), record.id.encode())
                await self._seats.release_seat(record)
                failpoints.reach("E2")
                if self._is_bevygap(record):
                    await self._buckets.unclaimed_sessions.forget(record.id, EVERYTHING)
                await self._sessions.apply(record.id, Released())
            self._done[record.id] = None
            if len(self._done) > _REMEMBERED:
                del self._done[next(iter(self._done))]
        except TipoffError as exc:
            log.warning("session %s is not released yet, the reconciler tries again: %s", record.id, exc)
