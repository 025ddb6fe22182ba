"""Stores the deployment records: every change of one goes through here, many in one compare-and-set.

All changes of one deployment that wait at one moment are applied to the record one after another and written once
(group commit); changes that come while that write is on its way go into the next. A lost compare-and-set reads the
record again and applies the same changes to it, so a change is a pure function of the record it meets.

`entries` is what this process knows: from its own writes, from listings, and from a watch as a hint. It may be old;
only a compare-and-set tells.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from tipoff_matchmaker.deployments.state_machine import in_brief
from tipoff_matchmaker.errors import NoRecord
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.kv.bucket import Bucket, Entry, Full, LostRace
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState

log = logging.getLogger(__name__)

Change: TypeAlias = Callable[[DeploymentRecord], DeploymentRecord]
"""Pure. Returns the same object for "nothing to do"; may raise its own exception, which its caller gets."""

Listener: TypeAlias = Callable[[DeploymentRecord | None, DeploymentRecord], None]
"""Called with the record before (None: unknown until now) and after, in the event loop, for every change learnt. No
listener relies on being called before or after another one."""

_TRIES = 100
_GONE_TTL = 60.0


class DeploymentStore:
    """The bucket `deployments` as one matchmaker sees and changes it."""

    def __init__(self, store: Bucket[DeploymentRecord], tasks: Tasks) -> None:
        self._store = store
        self._tasks = tasks
        self._waiting: dict[str, list[tuple[Change, asyncio.Future[DeploymentRecord]]]] = {}
        self._listeners: list[Listener] = []
        self._state_listeners: list[Listener] = []
        self.entries: dict[str, Entry[DeploymentRecord]] = {}

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` for every change that this process learns."""
        self._listeners.append(listener)

    def subscribe_states(self, listener: Listener) -> None:
        """Call `listener` for each record that is new to this process or has another state than before."""
        self._state_listeners.append(listener)

    def get(self, deployment_id: str) -> DeploymentRecord | None:
        """The record as this process knows it; None when it knows none, or it is gone."""
        entry = self.entries.get(deployment_id)
        return None if entry is None else entry.value

    def of(self, game: str, version: str) -> list[DeploymentRecord]:
        """All known records of one game and version."""
        return [
            entry.value
            for entry in self.entries.values()
            if entry.value.game == game and entry.value.version == version
        ]

    def observe(self, entry: Entry[DeploymentRecord]) -> None:
        """Learn an entry, wherever it comes from; one older than the known one is ignored."""
        known = self.entries.get(entry.key)
        if known is not None and known.revision >= entry.revision:
            return
        if entry.value.state is DeploymentState.GONE:
            self.entries.pop(entry.key, None)
        else:
            self.entries[entry.key] = entry
        self._publish(None if known is None else known.value, entry.value)

    def vanished(self, deployment_id: str) -> None:
        """Learn that the key was deleted."""
        known = self.entries.pop(deployment_id, None)
        if known is not None:
            self._publish(known.value, msgspec.structs.replace(known.value, state=DeploymentState.GONE))

    def forget_all(self) -> None:
        """Forget every record: the bucket was lost, and revisions begin anew."""
        for deployment_id in list(self.entries):
            self.vanished(deployment_id)

    def _publish(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        for listener in self._listeners:
            listener(before, after)
        if before is None or before.state is not after.state:
            for listener in self._state_listeners:
                listener(before, after)

    async def refresh(self) -> dict[str, DeploymentRecord]:
        """List and learn all records. Raises `Unavailable`."""
        known = dict(self.entries)
        listed = await self._store.list()
        for entry in listed.values():
            self.observe(entry)
        for deployment_id, entry in known.items():
            if deployment_id not in listed and self.entries.get(deployment_id) is entry:
                self.vanished(deployment_id)
        return {deployment_id: entry.value for deployment_id, entry in listed.items()}

    async def follow(self) -> None:
        """Learn what other matchmakers write, as it happens, until cancelled; begins again after each outage. It is a
        hint that wakes those who wait here: the reconciler finds what was missed."""
        await run_forever(
            self._watch,
            first_pause=0.1,
            retry_on=Unavailable,
            on_failure=lambda failures, exc: log.info("watching deployments: %s; again soon", exc),
        )

    async def _watch(self, pauses: Backoff) -> None:
        async with self._store.watch() as changes:
            while True:
                batch = await changes.fetch()
                pauses.reset()
                for change, ack in batch:
                    if change.value is not None:
                        self.observe(Entry(change.key, change.value, change.revision))
                    elif (known := self.entries.get(change.key)) and known.revision < change.revision:
                        self.vanished(change.key)
                    await ack()

    async def fetch(self, deployment_id: str) -> DeploymentRecord | None:
        """Read the current record from the bucket. Raises `Unavailable`."""
        entry = await self._store.get(deployment_id)
        if entry is None:
            self.vanished(deployment_id)
            return None
        self.observe(entry)
        return entry.value

    async def create(self, record: DeploymentRecord) -> None:
        """Write a new record. Raises `LostRace` when there is one already, and `Unavailable`."""
        revision = await self._store.create(record.id, record)
        self.observe(Entry(record.id, record, revision))

    def change(self, deployment_id: str, change: Change) -> asyncio.Future[DeploymentRecord]:
        """Apply `change` and write the outcome; the future is the record as written (or unchanged, where there was
        nothing to do). It fails with what `change` raised, with `NoRecord`, or with `Unavailable`: then the outcome
        is unknown. Cancelling the future withdraws a change that is not on its way yet."""
        future: asyncio.Future[DeploymentRecord] = asyncio.get_running_loop().create_future()
        queue = self._waiting.get(deployment_id)
        if queue is not None:
            queue.append((change, future))
        else:
            self._waiting[deployment_id] = [(change, future)]
            self._tasks.start(self._write_all(deployment_id), f"deployment/{deployment_id}")
        return future

    async def _write_all(self, key: str) -> None:
        """Write changes of `key` while there are any; the only writer of that key in this process."""
        batch: list[tuple[Change, asyncio.Future[DeploymentRecord]]] = []
        try:
            while batch := self._waiting[key]:
                self._waiting[key] = []
                try:
                    await self._write(key, batch)
                except TipoffError as exc:
                    _fail(batch, exc)
        except BaseException:
            _fail(batch + self._waiting[key], Unavailable("the matchmaker is stopping", retry_after=1))
            raise
        finally:
            del self._waiting[key]

    async def _write(self, key: str, batch: list[tuple[Change, asyncio.Future[DeploymentRecord]]]) -> None:
        entry = self.entries.get(key)
        fresh = entry is None
        for _ in range(_TRIES):
            if entry is None:
                entry = await self._read(key)
            record = entry.value
            refused: list[tuple[asyncio.Future[DeploymentRecord], Exception]] = []
            accepted: list[asyncio.Future[DeploymentRecord]] = []
            for change, future in batch:
                if future.done():  # its caller has gone, so nobody wants this change
                    continue
                try:
                    record = change(record)
                except Exception as exc:
                    refused.append((future, exc))
                else:
                    accepted.append(future)
            if record is entry.value and not fresh:
                # Nothing to write, or all refused, by what we happen to know: read before saying so.
                entry, fresh = None, True
                continue
            if record is not entry.value:
                try:
                    ttl = _GONE_TTL if record.state is DeploymentState.GONE else None
                    record, revision = await self._update(key, record, entry.revision, ttl)
                except LostRace:
                    entry, fresh = None, True
                    continue
                self.observe(Entry(key, record, revision))
            for future in accepted:
                if not future.done():
                    future.set_result(record)
            for future, refusal in refused:
                if not future.done():
                    future.set_exception(refusal)
            return
        raise Unavailable(f"deployment {key} changes too quickly to be written", retry_after=1)

    async def _update(
        self, key: str, record: DeploymentRecord, revision: int, ttl: float | None
    ) -> tuple[DeploymentRecord, int]:
        """Returns the record as it was written, and its new revision."""
        try:
            return record, await self._store.update(key, record, revision, ttl=ttl)
        except Full:
            brief = in_brief(record)
            if brief is record:
                raise
            return brief, await self._store.update(key, brief, revision, ttl=ttl)

    async def _read(self, key: str) -> Entry[DeploymentRecord]:
        entry = await self._store.get(key)
        if entry is None:
            self.vanished(key)
            raise NoRecord(f"deployment {key} has no record")
        self.observe(entry)
        return entry


def _fail(batch: list[tuple[Change, asyncio.Future[DeploymentRecord]]], exc: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(exc)
