"""Elects the matchmaker that reconciles: one at a time, by a lease (`matchmakers[reconciler]`, a key with a TTL).

The lease spares work and keeps two brakes from adding up; nothing relies on it for safety. A holder that was suspended
and continues with an old snapshot is stopped by its own clock (`held`), and by the compare-and-set of every write.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.bucket import Bucket, LostRace
from tipoff_shared.primitives.waiting import wait_for_event

log = logging.getLogger(__name__)

KEY = "reconciler"


class ReconcilerLease:
    """`ttl`: seconds after which another matchmaker may take over from a silent holder."""

    def __init__(self, store: Bucket[str], instance: str, *, ttl: float) -> None:
        self._store = store
        self._instance = instance
        self._ttl = ttl
        self._revision = 0
        self._until = 0.0
        self._given_up = False
        self._at_once = asyncio.Event()
        self.turn = 0
        """Counts up each time the lease becomes ours: a snapshot of an earlier turn must not be acted upon."""

    async def run(self, on_turn: Callable[[], None]) -> None:
        """Keep the lease, or wait for it, until cancelled; `on_turn` is called whenever it becomes ours."""
        while True:
            await wait_for_event(self._at_once, self._ttl / 3)
            self._at_once.clear()
            before = self.turn
            try:
                await self.seek()
            except TipoffError as exc:
                log.debug("the reconciler's lease: %s", exc)
            if self.turn != before:
                on_turn()

    def soon(self) -> None:
        """Seek at once (NATS is back)."""
        self._at_once.set()

    @property
    def held(self) -> bool:
        """Whether the lease is ours for certain: NATS forgets it later than we do."""
        return time.monotonic() < self._until

    async def seek(self) -> bool:
        """Keep the lease, or take it if it is free; returns whether it is ours. Raises `Unavailable`."""
        if self._given_up:
            return False
        now = time.monotonic()
        had = self.held
        try:
            if self._revision:
                self._hold(await self._write(self._revision), now)
            else:
                self._hold(await self._store.create(KEY, self._instance, ttl=self._ttl), now)
        except LostRace:
            await self._lost(now)
        if self.held and not had:
            self.turn += 1
            log.info("matchmaker %s reconciles from now on", self._instance)
        return self.held

    async def _lost(self, now: float) -> None:
        """Another write came first: another matchmaker's, or one of our own whose outcome is unknown."""
        self._revision, self._until = 0, 0.0
        entry = await self._store.get(KEY)
        if entry is None or entry.value != self._instance:
            return
        try:
            self._hold(await self._write(entry.revision), now)
        except LostRace:
            return

    async def _write(self, revision: int) -> int:
        return await self._store.update(KEY, self._instance, revision, ttl=self._ttl)

    def _hold(self, revision: int, since: float) -> None:
        self._revision, self._until = revision, since + self._ttl

    async def give_up(self) -> None:
        """Give the lease up for good: this process ends, and the next one need not wait for it to expire."""
        self._given_up = True
        revision, self._revision, self._until = self._revision, 0, 0.0
        if revision:
            try:
                await self._store.delete(KEY, revision)
            except TipoffError as exc:
                log.info("the reconciler's lease is left to expire: %s", exc)
