"""Follows the bucket `bans`: keeps a `BanList` as NATS has it, and tells listeners what changes.

The watch is a hint that comes at once; a listing every half minute is the truth. While NATS is away, or has no such
bucket yet, what is known stays in force. Where NATS has lost the bucket, or has an older state of it (a backup), what
is missing there stays in force too, until it is written back, lifted or over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TypeAlias

from tipoff_shared.ban_list import BanList, is_over
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, BucketAge
from tipoff_shared.kv.changes import Change
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.records import Ban

log = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[list[Ban]], None]
"""Called in the event loop with bans that are new or have changed, lifted ones included."""

OnMissing: TypeAlias = Callable[[list[Ban]], None]
"""Called after each listing that lacks bans which NATS has lost, with those."""

LISTING_INTERVAL = 30.0
_TOLD_FOR = 600.0
"""Seconds for which `problem` tells of a loss."""


class BanFollower:
    """The bans as one process knows them. `run` must run. `clock`: Unix seconds."""

    def __init__(self, bucket: Bucket[Ban], clock: Callable[[], float] = time.time) -> None:
        self.bans = BanList()
        self._bucket = bucket
        self._clock = clock
        self._revisions: dict[str, int] = {}
        self._listeners: list[Listener] = []
        self._on_listed: list[Callable[[], None]] = []
        self._on_missing: list[OnMissing] = []
        self._age: BucketAge | None = None
        self._missing: dict[str, Ban] = {}
        """Those that NATS has lost and we know."""
        self._lost_at: float | None = None
        self._saved = 0

    def subscribe(self, listener: Listener, *, on_listed: Callable[[], None] | None = None) -> None:
        """Call `listener` with what changes, and `on_listed` after each listing."""
        self._listeners.append(listener)
        if on_listed is not None:
            self._on_listed.append(on_listed)

    def subscribe_missing(self, on_missing: OnMissing) -> None:
        """Call `on_missing` with bans that NATS has lost, again and again until it has them."""
        self._on_missing.append(on_missing)

    @property
    def problem(self) -> str:
        """What operators must know about lost bans; "" when none were lost lately."""
        if self._lost_at is None or self._clock() - self._lost_at > _TOLD_FOR:
            return ""
        return (
            f"NATS had lost the bucket of bans; {self._saved} were known and are written back: compare with "
            "`tipoff ban list`, and add what is missing"
        )

    def check(self, address: str, user_id: str = "") -> None:
        """Raises `NotAllowed` when players at `address` or this user are banned now."""
        if len(self.bans):
            self.bans.check(self._clock(), address=address, user=user_id)

    async def run(self) -> None:
        """Follow the bucket until cancelled."""
        await run_forever(
            self._follow,
            first_pause=0.2,
            retry_on=Unavailable,
            on_failure=lambda _, exc: log.debug("following bans: %s; again soon", exc),
        )

    async def _follow(self, pauses: Backoff) -> None:
        loop = asyncio.get_running_loop()
        async with self._bucket.watch() as changes:
            while True:
                await self._list()
                pauses.reset()
                end = loop.time() + LISTING_INTERVAL
                while (left := end - loop.time()) > 0:
                    batch = await changes.fetch(timeout=min(left + 0.1, 5.0))
                    for _, ack in batch:
                        await ack()
                    self._learn([change for change, _ in batch])

    async def _list(self) -> None:
        age = await self._bucket.age(self._age)
        listed = await self._bucket.list()
        now = self._clock()
        self._notice_loss(age, listed, now)
        current = {key: entry.value for key, entry in listed.items() if not is_over(entry.value, now)}
        self._missing = {
            key: ban for key, ban in self._missing.items() if key not in listed and not is_over(ban, now)
        }
        current |= self._missing
        before = self.bans.all()
        new = [ban for key, ban in current.items() if before.get(key) != ban]
        self.bans.replace(current)
        self._revisions = {key: entry.revision for key, entry in listed.items()}
        self._tell(new)
        for listed_listener in self._on_listed:
            listed_listener()
        if self._missing:
            for on_missing in self._on_missing:
                on_missing(list(self._missing.values()))

    def _notice_loss(self, age: BucketAge, listed: Mapping[str, object], now: float) -> None:
        before, self._age = self._age, age
        if before is None or not (age.is_made_anew(before) or age.has_gone_back(before)):
            return
        known = self.bans.all()
        self._missing = {
            key: ban for key, ban in known.items() if key not in listed and not is_over(ban, now)
        }
        self._lost_at, self._saved = now, len(self._missing)
        log.error(
            "NATS has lost the bucket of bans, or has an older state of it: %d of %d known bans are missing there; "
            "they stay in force here and are written back",
            len(self._missing),
            len(known),
        )

    def _learn(self, changes: list[Change[Ban]]) -> None:
        new: list[Ban] = []
        for change in changes:
            if self._revisions.get(change.key, 0) >= change.revision:
                continue
            self._revisions[change.key] = change.revision
            self._missing.pop(change.key, None)
            if change.value is None:
                self.bans.drop(change.key)
            elif self.bans.all().get(change.key) != change.value:
                self.bans.put(change.key, change.value)
                new.append(change.value)
        self._tell(new)

    def _tell(self, bans: list[Ban]) -> None:
        if bans:
            for listener in self._listeners:
                listener(bans)
