"""Notices that NATS has lost a bucket or some of its writes; what it held is rebuilt by the reconciler.

A bucket is known by the time at which its stream was created. A bucket that is younger than the others, than a running
game server, or than the one this process knew before, has lost its records. One whose latest write is older than the
one this process knew has gone back: an older backup was restored, or the power failed. For some minutes a missing
record then means nothing: servers and players who have none are taken for those whose record was lost.

Who finds a record missing, and would end something for it, asks `may_have_lost`: the ages are then read once more,
because the reading before may be older than the loss.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tipoff_shared.kv.bucket import Bucket, BucketAge
from tipoff_shared.kv.buckets import BEVYGAP_BUCKETS, Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import NotFound
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

REBUILT_WITHIN = 300.0
"""Seconds after its creation for which a bucket's lost records are rebuilt."""
_AT_ONCE = 5.0
"""Seconds within which a new system makes all its buckets; more than that between two means that one was lost."""
_APART = 0.05
"""Seconds between two readings for missing records: whoever makes us look for many causes no more of them."""


class BucketAges:
    """The ages of all buckets. `clock`: Unix seconds."""

    def __init__(self, bus: Bus, buckets: Buckets, tasks: Tasks, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._clock = clock
        self._gameservers = buckets.gameservers
        self._readings = SingleFlight[None, None]("ages of buckets", begin=tasks.start_awaited)
        self._next_look = 0.0
        self._buckets: dict[str, Bucket[Any]] = {
            field.name: getattr(buckets, field.name) for field in dataclasses.fields(buckets)
        }
        self._ages: dict[str, BucketAge] = {}
        self._made_anew: dict[str, float] = {}
        self._listeners: list[Callable[[str], None]] = []

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with the name of each bucket that this process has seen being lost, or going back. What was
        known of its records is worthless, their revisions too."""
        self._listeners.append(listener)

    async def read(self) -> None:
        """Read the ages, and make missing buckets anew; what was lost since the reading before is published. No
        reading that began before this call counts. Raises `Unavailable`; cancelling is safe."""
        await self._readings.run_fresh(None, self._read_and_compare)

    async def may_have_lost(self, bucket: str, *, server: str = "") -> bool:
        """Whether a record that was missing in `bucket` just now may be one that NATS has lost; then it is rebuilt, and
        nothing may end for want of it. `server`: the game server that speaks of the record, if one does; as long as it
        has no lease, nobody knows whether it runs since before the loss. Raises `Unavailable`; cancelling is safe."""
        if bucket in self.lost:
            return True
        await self._readings.run_fresh(None, self._look)
        if server and bucket not in self.lost:
            lease = await self._gameservers.get(server)
            if lease is None:
                return True
            self.compare([lease.value.started_at])
        return bucket in self.lost

    async def _look(self) -> None:
        await asyncio.sleep(self._next_look - time.monotonic())
        self._next_look = time.monotonic() + _APART
        await self._read_and_compare()

    async def _read_and_compare(self) -> None:
        try:
            ages = await self._read()
        except NotFound:
            log.warning("NATS has lost buckets; they are made anew")
            await create_buckets(self._bus)
            ages = await self._read()
        before, self._ages = self._ages, ages
        if not before:
            return
        now = self._clock()
        later = {name: age.created for name, age in ages.items() if age.created > before[name].read_at}
        made_anew = {
            name: later.get(name, now) for name, age in ages.items() if age.is_made_anew(before[name])
        }
        if made_anew:  # another one that was lost, in a cluster, may have as many writes again
            made_anew |= later
        for name in made_anew:
            log.warning("bucket %s was lost and made anew; its records are rebuilt from what runs", name)
        back = [name for name, age in ages.items() if age.has_gone_back(before[name])]
        if back:
            # Where little is written, the revision may be beyond the one we know again: what holds for one bucket of
            # a store is taken to hold for all.
            made_anew = dict.fromkeys(ages, now) | made_anew
            log.error(
                "NATS has an older state of bucket %s (revision %d after %d): an older backup, or writes were lost. "
                "All records are compared with what runs",
                back[0],
                ages[back[0]].revision,
                before[back[0]].revision,
            )
        self._made_anew |= made_anew
        for name in made_anew:
            for listener in self._listeners:
                listener(name)

    async def _read(self) -> dict[str, BucketAge]:
        found = await asyncio.gather(
            *(bucket.age(self._ages.get(name)) for name, bucket in self._buckets.items())
        )
        return dict(zip(self._buckets, found, strict=True))

    def compare(self, servers_started: Iterable[float]) -> None:
        """Learn when the running game servers started (Unix seconds; 0: unknown)."""
        first = min((at for at in servers_started if at > 0), default=None)
        made_by_us = [age.created for name, age in self._ages.items() if name not in BEVYGAP_BUCKETS]
        oldest = min(made_by_us, default=math.inf)
        at_once = max(made_by_us, default=oldest) <= oldest + _AT_ONCE
        for name, age in self._ages.items():
            # A node of a cluster that was replaced names the time at which it began, for each bucket that it leads.
            # Only that all are of one time says that they were made then.
            lost = not age.replicated and age.created > oldest + _AT_ONCE
            if first is not None and first < age.created and (at_once or not age.replicated):
                lost = True
            if lost:
                self._made_anew[name] = max(age.created, self._made_anew.get(name, age.created))

    @property
    def lost(self) -> Mapping[str, float]:
        """The buckets whose records are being rebuilt, and when each was created or seen to have gone back."""
        now = self._clock()
        return {name: at for name, at in self._made_anew.items() if now - at < REBUILT_WITHIN}
