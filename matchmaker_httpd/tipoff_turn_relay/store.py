"""Keeps the relay's records in two buckets, in NATS or in memory, and says how long a request outlives failures."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Generic, TypeAlias, TypeVar

from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, Changeable, Codec, Full, LostRace
from tipoff_shared.kv.buckets import own_bucket
from tipoff_shared.kv.changes import Change
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.nats.jetstream import create_stream

T = TypeVar("T")

PAIRING_BUCKET, GAMES_BUCKET = BUCKETS = ("turn_pairing", "turn_games")
MAX_GAMES = 10_000
"""Records in the games' bucket, including those of games that ended in the last minute."""
MAX_RECORD = 1 << 20
"""Bytes; a game with both caches full is 540 KB."""
LIFETIME = 600.0
"""Seconds after its last write for which a record lives: longer than an outage."""
ANSWER_WITHIN = 2.0
"""Seconds for one read or write."""
PAUSE = 0.05
"""Seconds between two tries while NATS is connected and its JetStream is not ready yet."""

Abandoned: TypeAlias = Callable[[], Awaitable[bool]]
"""Whether the client has disconnected, so that its answer would be lost."""


class ClientGone(Exception):
    """The client disconnected before its request was carried out; nothing was changed for it."""


async def open_bucket(
    bus: Bus, name: str, kind: type[T], codec: Codec[T], *, description: str, max_records: int
) -> Bucket[T]:
    """The relay's bucket `name`, created where it is missing; an existing one keeps its limits, which an operator may
    have set. Raises `Unavailable`, which says what to do."""
    bucket = Bucket(bus, name, kind, codec=codec, timeout=ANSWER_WITHIN)
    config = own_bucket(
        bucket.bucket,
        description,
        bus.settings.replicas,
        max_value=MAX_RECORD,
        max_entries=max_records,
        max_age=LIFETIME,
    )
    try:
        await create_stream(bus, config)
    except Unavailable as exc:
        raise Unavailable(
            f"the turn relay's bucket {bucket.bucket} is missing: {exc}. docs/turn-relay.md lists the permissions it "
            "needs; TIPOFF_HTTPD_TURN_RELAY=0 turns the relay off"
        ) from exc
    return bucket


class MemoryBucket(Changeable[T]):
    """A bucket in this process's memory: for tests of the drivers, and to measure what NATS costs.

    Revisions count up over all keys, as a stream's do. An expired record is dropped when it is read.
    """

    def __init__(self, codec: Codec[T], max_records: int = 1_000_000) -> None:
        self.bucket = "memory"
        self.records: dict[str, tuple[bytes, int, float]] = {}
        """Key -> value as written, revision, Unix seconds at which it expires."""
        self._codec = codec
        self._listeners: defaultdict[str, list[Callable[[], None]]] = defaultdict(list)
        self._revision = 0
        self._max_records = max_records
        self.heard_since = time.time()

    async def latest(self, key: str) -> Change[T] | None:
        """The current entry, or None."""
        value, revision, expires = self.records.get(key, (b"", 0, 0.0))
        if expires <= time.time():
            self.records.pop(key, None)
            return None
        return Change(key, self._codec.decode(value), revision)

    async def newer(self, key: str, revision: int) -> Change[T] | None:
        """The current entry where it was written after `revision`."""
        latest = await self.latest(key)
        return None if latest is None or latest.revision <= revision else latest

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> int:
        """Compare-and-set; returns the new revision. Raises `LostRace`, and `Full` for one record too many."""
        latest = await self.latest(key)
        if (0 if latest is None else latest.revision) != revision:
            raise LostRace(f"{key} was changed by somebody else")
        if latest is None and len(self.records) >= self._max_records:
            raise Full("maximum messages exceeded", retry_after=5)
        self._revision += 1
        self.records[key] = (self._codec.encode(value), self._revision, time.time() + (ttl or LIFETIME))
        for listener in self._listeners.get(key, ()):
            listener()
        return self._revision

    async def delete(self, key: str, revision: int | None = None, *, why: str = "") -> None:
        """Remove the record, which nobody asks about. Raises `LostRace` when `revision` is not the current one."""
        if revision is not None and self.records.get(key, (b"", 0, 0.0))[1] != revision:
            raise LostRace(f"{key} was changed by somebody else")
        self.records.pop(key, None)

    async def forget(self, key: str, up_to: int) -> None:
        """Remove the record where it is not newer than `up_to`."""
        if key in self.records and self.records[key][1] <= up_to:
            del self.records[key]

    @asynccontextmanager
    async def listen(self, key: str, callback: Callable[[], None]) -> AsyncIterator[None]:
        """Call `callback` at each write of the key, within the block."""
        self._listeners[key].append(callback)
        try:
            yield
        finally:
            self._listeners[key].remove(callback)
            if not self._listeners[key]:
                del self._listeners[key]

    async def wait_reachable(self, timeout: float) -> bool:
        """True: memory is always there."""
        del timeout
        return True


RecordBucket: TypeAlias = Bucket[T] | MemoryBucket[T]


class Patience(Generic[T]):
    """The tries of one request after failures of its bucket, up to `seconds` from the first failure."""

    __slots__ = ("_bucket", "_failures", "_seconds", "_until")

    def __init__(self, bucket: RecordBucket[T], seconds: float) -> None:
        self._bucket = bucket
        self._seconds = seconds
        self._until = 0.0
        self._failures = 0

    async def after(self, failure: Unavailable) -> None:
        """Return when another try is worth it; raise `failure` when the time is up."""
        now = asyncio.get_running_loop().time()
        if not self._failures:
            self._until = now + self._seconds
        self._failures += 1
        left = self._until - now
        if left <= 0 or not await self._bucket.wait_reachable(left):
            raise (
                failure if isinstance(failure, PermissionDenied) else Unavailable(str(failure), retry_after=1)
            )
        if self._failures > 1:
            await asyncio.sleep(
                PAUSE
            )  # connected but failing: a stream that elects its leader sends no event
