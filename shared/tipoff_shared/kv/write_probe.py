"""Finds out whether NATS takes writes, before a player does: writes to each bucket, a little and regularly.

A bucket only for such probes would vouch for nothing: a full disk makes nats-server refuse or drop the writes of
one stream while those of another succeed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import Any

from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import BEVYGAP_BUCKETS, Buckets
from tipoff_shared.nats.connection import Bus

EVERY = 5.0
AGAIN = 1.0
"""Seconds to the next probe while writes fail."""
_BLOCK = 4096
"""Bytes of a probe while writes fail: a disk without a free block may still have room at the end of the last one."""
_SHORT = 512
"""The same for buckets of bevygap's, whose values have at most 1024 bytes."""


_ONLY_READ = ("games",)
"""Buckets that operators write, and a matchmaker may not."""


class WriteProbe:
    """The probes of all buckets of a matchmaker, and what they found."""

    def __init__(self, bus: Bus, buckets: Buckets) -> None:
        self._bus = bus
        self._buckets = {
            field.name: getattr(buckets, field.name)
            for field in dataclasses.fields(buckets)
            if field.name not in _ONLY_READ
        }

    @property
    def problem(self) -> str:
        """Which buckets take no writes, and why, in one line for people; "" when all do. Known from the probes and from
        all writes of this connection; "" also while NATS is away."""
        return self._bus.writes.problem(time.monotonic()) if self._bus.connected else ""

    async def once(self) -> str:
        """Probe all buckets at once; the `problem` then. Raises nothing."""
        if self._bus.connected:
            size = _BLOCK if self.problem else 0
            await asyncio.gather(
                *(
                    _probe(bucket, min(size, _SHORT) if name in BEVYGAP_BUCKETS else size)
                    for name, bucket in self._buckets.items()
                )
            )
        return self.problem

    async def run(self) -> None:
        """Probe until cancelled: every five seconds, every second while writes fail."""
        while True:
            await asyncio.sleep(AGAIN if self.problem else EVERY)
            await self.once()


async def _probe(bucket: Bucket[Any], size: int) -> None:
    with contextlib.suppress(Unavailable):  # `WriteHealth` has noted it
        await bucket.probe(size=size)
