"""`RecordStore` in this process's memory: for tests of the drivers, and to measure what NATS costs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tipoff_shared.kv.bucket import LostRace
from tipoff_turn_relay.store import LIFETIME, Stored, StoreFull


class MemoryRecords:
    """Revisions count up over all keys, as a stream's do. Records of the past go when somebody asks for them."""

    def __init__(self, max_records: int = 1_000_000) -> None:
        self._records: dict[str, tuple[bytes, int, float]] = {}
        self._told: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self._revision = 0
        self._max_records = max_records
        self.heard_since = time.time()

    async def get(self, key: str) -> Stored:
        value, revision, expires = self._records.get(key, (None, 0, 0.0))
        return Stored(value, revision) if expires > time.time() else Stored(None, 0)

    async def newer(self, key: str, revision: int) -> Stored | None:
        stored = await self.get(key)
        return stored if stored.revision > revision else None

    async def set(self, key: str, value: bytes, revision: int, *, ttl: float | None = None) -> int:
        present = await self.get(key)
        if present.revision != revision:
            raise LostRace(f"{key} was changed by somebody else")
        if present.value is None and len(self._records) >= self._max_records:
            raise StoreFull("maximum messages exceeded", retry_after=5)
        self._revision += 1
        self._records[key] = (value, self._revision, time.time() + (ttl or LIFETIME))
        for told in self._told.get(key, ()):
            told()
        return self._revision

    @asynccontextmanager
    async def changes(self, key: str, told: Callable[[], None]) -> AsyncIterator[None]:
        self._told[key].append(told)
        try:
            yield
        finally:
            self._told[key].remove(told)
            if not self._told[key]:
                del self._told[key]

    async def available(self, timeout: float) -> bool:
        del timeout
        return True
