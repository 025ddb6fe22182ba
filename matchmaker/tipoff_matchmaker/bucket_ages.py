"""Notices that NATS has lost a bucket: it is made anew, and what it held is rebuilt by the reconciler.

A bucket is known by the time at which its stream was created. A bucket that is younger than the others, than a running
game server, or than the one this process knew before, has lost its records. For some minutes after its creation a
missing record then means nothing: servers and players who have none are taken for those whose record was lost.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import BEVYGAP_BUCKETS, Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import NotFound

log = logging.getLogger(__name__)

REBUILT_WITHIN = 300.0
"""Seconds after its creation for which a bucket's lost records are rebuilt."""
_AT_ONCE = 5.0
"""Seconds within which a new system makes all its buckets; more than that between two means that one was lost."""


class BucketAges:
    """The creation times of all buckets. `clock`: Unix seconds."""

    def __init__(self, bus: Bus, buckets: Buckets, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock
        self._buckets: dict[str, Bucket[Any]] = {
            field.name: getattr(buckets, field.name) for field in dataclasses.fields(buckets)
        }
        self._created: dict[str, float] = {}
        self._made_anew: dict[str, float] = {}
        self._listeners: list[Callable[[str], None]] = []

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the name of each bucket that this process has seen being lost. What was known of its
        records is worthless, their revisions too."""
        self._listeners.append(listener)

    async def read(self) -> bool:
        """Read the creation times, and make missing buckets anew; whether one was lost since the reading before. Raises
        `Unavailable`."""
        try:
            created = await self._read()
        except NotFound:
            log.warning("NATS has lost buckets; they are made anew")
            await create_buckets(self._bus)
            created = await self._read()
        before, self._created = self._created, created
        lost = [name for name, at in created.items() if before.get(name, at) != at]
        for name in lost:
            log.warning("bucket %s was lost and made anew; its records are rebuilt from what runs", name)
            self._made_anew[name] = created[name]
            for listener in self._listeners:
                listener(name)
        return bool(lost)

    async def _read(self) -> dict[str, float]:
        found = await asyncio.gather(*(bucket.created() for bucket in self._buckets.values()))
        return dict(zip(self._buckets, found, strict=True))

    def compare(self, servers_started: Iterable[float]) -> None:
        """Learn when the running game servers started (Unix seconds; 0: unknown)."""
        first = min((at for at in servers_started if at > 0), default=None)
        made_by_us = [at for name, at in self._created.items() if name not in BEVYGAP_BUCKETS]
        for name, at in self._created.items():
            if at > min(made_by_us, default=at) + _AT_ONCE or (first is not None and first < at):
                self._made_anew[name] = at

    @property
    def lost(self) -> Mapping[str, float]:
        """The buckets whose records are being rebuilt, and when each was created."""
        now = self._clock()
        return {name: at for name, at in self._made_anew.items() if now - at < REBUILT_WITHIN}
