"""Writers who note what was acknowledged, so that a test can say whether any of it was lost."""

from __future__ import annotations

import asyncio

import msgspec

from tests.polling import eventually
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, Entry, LostRace
from tipoff_shared.records import SessionRecord, SessionState


class Acknowledged:
    """The last number of each key that NATS has acknowledged; `refused` counts the tries that failed."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.refused = 0
        self._news = asyncio.Event()

    @property
    def count(self) -> int:
        return sum(self.last.values())

    def note(self, key: str, number: int) -> None:
        self.last[key] = number
        self._news.set()

    async def reaches(self, count: int, timeout: float = 20) -> None:
        async with asyncio.timeout(timeout):
            while self.count < count:
                self._news.clear()
                await self._news.wait()

    async def lost(self, sessions: Bucket[SessionRecord], timeout: float = 20) -> list[str]:
        """Keys whose record is missing or older than what was acknowledged before it was read. Waits until the
        bucket can be read."""
        last = dict(self.last)
        found: dict[str, Entry[SessionRecord]] = {}

        async def read() -> bool:
            found.update(await sessions.list())
            return True

        await eventually(read, "the bucket can be read", timeout, unready=(Unavailable,))
        return [key for key, number in last.items() if key not in found or found[key].value.attempt < number]


async def write_until(
    stop: asyncio.Event, sessions: Bucket[SessionRecord], key: str, written: Acknowledged
) -> None:
    """Count up in `key` by compare-and-set, as fast as it goes; whatever fails is read and tried again."""
    record = SessionRecord(key, SessionState.REQUESTED, "arena", "1", "1", "me", created_at=0.0)
    while not stop.is_set():
        try:
            entry = await sessions.get(key)
            if entry is None:
                await sessions.create(key, record)
                written.note(key, 1)
                continue
            changed = msgspec.structs.replace(entry.value, attempt=entry.value.attempt + 1)
            await sessions.update(key, changed, entry.revision)
            written.note(key, changed.attempt)
        except LostRace:  # our own write of before, whose answer never came
            continue
        except Unavailable:
            written.refused += 1
            await asyncio.sleep(0.1)  # the fault under test
