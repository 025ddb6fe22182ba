"""Giving back what an ended session held: its seat, its entries in bevygap's buckets; then its record is `gone`.

Runs as a task of its own for each session, a bounded number at once. What a crash leaves undone is found by the
session's record, which says `closing`: through the delete queue at once, through the sweep in any case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.allocators.router import Allocators
from tipoff_matchmaker.sessions.machine import GivenBack
from tipoff_matchmaker.sessions.store import SessionBook
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import Games
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import SessionRecord

log = logging.getLogger(__name__)

_AT_ONCE = 200
_REMEMBERED = 5000
EVERYTHING = 2**62
"""A revision above all others, for `Bucket.forget`."""


class GiveBack:
    """`start` is idempotent: a session on its way is not begun twice here, and each step may be repeated."""

    def __init__(
        self,
        bus: Bus,
        buckets: Buckets,
        games: Games,
        allocators: Allocators,
        book: Callable[[], SessionBook],
        tasks: Tasks,
    ) -> None:
        self._bus = bus
        self._buckets = buckets
        self._games = games
        self._allocators = allocators
        self._book = book
        self._tasks = tasks
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._done: dict[str, None] = {}
        """The latest sessions finished here, so that our own hints cost no reading."""

    def start(self, record: SessionRecord) -> asyncio.Task[None]:
        task = self._running.get(record.id)
        if task is None:
            task = self._tasks.start(self._run(record), f"give back/{record.id}")
            self._running[record.id] = task
            task.add_done_callback(lambda _: self._running.pop(record.id, None))
        return task

    def is_running(self, session_id: str) -> bool:
        return session_id in self._running

    def was_done(self, session_id: str) -> bool:
        return session_id in self._done

    def claimed(self, session_id: str) -> None:
        """The player is there: bevygap's entry for those who never came goes."""
        self._tasks.start(self._unclaim(session_id), f"claimed/{session_id}")

    async def _unclaim(self, session_id: str) -> None:
        try:
            await self._buckets.unclaimed_sessions.forget(session_id, EVERYTHING)
        except TipoffError as exc:
            log.info("session %s still counts as unclaimed: %s", session_id, exc)

    async def _run(self, record: SessionRecord) -> None:
        try:
            async with self._room:
                await self._hint(record.id)
                allocator = self._allocators.of((record.game, record.version))
                await allocator.release(record.id, record.id, deployment_id=record.deployment_id)
                failpoints.reach("E2")
                game = self._games.get(record.game, record.version)
                if game is not None and game.bevygap:
                    await self._buckets.unclaimed_sessions.forget(record.id, EVERYTHING)
                await self._book().apply(record.id, GivenBack())
            self._done[record.id] = None
            if len(self._done) > _REMEMBERED:
                del self._done[next(iter(self._done))]
        except TipoffError as exc:
            log.warning("session %s is not given back yet, the sweep tries again: %s", record.id, exc)

    async def _hint(self, session_id: str) -> None:
        """To whoever reads the delete queue, should this process die before the next line."""
        await self._bus.publish(self._bus.subjects.delete_queue(session_id), session_id.encode())
