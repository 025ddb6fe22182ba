"""What game servers of the isolated profile say, written down on their behalf, as far as they may say it.

rules.py judges by the records as they stand; every write is a compare-and-set. From the buckets everything goes on
as in the trusted profile (reaper.py, servers.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from tipoff_matchmaker.deployments import machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.isolated import rules
from tipoff_matchmaker.isolated.rules import Join, Leave
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import GameserverLease, Kick, encode
from tipoff_shared.server_events import MAX_LEASE_TTL, Context, Goodbye, Lease, Players, ServerEvent

_SIDE_BY_SIDE = 25
_TRIES = 5


class EventWriter:
    """`on_context` is told of context messages; `longest_lease`: no lease lives for more seconds, whatever its server
    says. Errors are `TipoffError`s: the event may be written down again."""

    def __init__(
        self,
        bus: Bus,
        buckets: Buckets,
        deployments: DeploymentStore,
        on_context: Callable[[bytes], Awaitable[None]],
        *,
        longest_lease: float = MAX_LEASE_TTL,
    ) -> None:
        self._bus = bus
        self._buckets = buckets
        self._deployments = deployments
        self._on_context = on_context
        self._longest_lease = longest_lease

    async def write_down(self, deployment_id: str, event: ServerEvent) -> None:
        record = self._deployments.get(deployment_id) or await self._deployments.fetch(deployment_id)
        if record is None or not machine.is_live(record):
            return  # it is over; what it held has been given back
        match event.what:
            case Lease(lease, ttl):
                await self._lease(
                    deployment_id, event, rules.ordered(lease, event), min(ttl, self._longest_lease)
                )
            case Goodbye():
                await self._goodbye(deployment_id, event)
            case Players(joined, left):
                await _all(
                    self._join(deployment_id, event.boot_id, session_id, client_id)
                    for session_id, client_id in joined.items()
                )
                await _all(self._leave(deployment_id, session_id) for session_id in left)
            case Context(context):
                named: dict[str, Any] = context | {
                    "deployment_id": deployment_id,
                    "request_id": deployment_id,
                }
                await self._on_context(msgspec.json.encode(named))

    async def _lease(
        self, deployment_id: str, event: ServerEvent, lease: GameserverLease, ttl: float
    ) -> None:
        store = self._buckets.gameservers

        async def write() -> None:
            entry = await store.get(deployment_id)
            if entry is None:
                await store.create(deployment_id, lease, ttl=ttl)
            elif rules.newer(entry.value, event):
                await store.update(deployment_id, lease, entry.revision, ttl=ttl)

        await _until_won(write)

    async def _goodbye(self, deployment_id: str, event: ServerEvent) -> None:
        store = self._buckets.gameservers

        async def write() -> None:
            entry = await store.get(deployment_id)
            if entry is not None and rules.withdraws(entry.value, event):
                await store.delete(deployment_id, entry.revision)

        await _until_won(write)

    async def _join(self, deployment_id: str, boot_id: str, session_id: str, client_id: str) -> None:
        store = self._buckets.active_connections

        async def write() -> None:
            session = await self._buckets.sessions.get(session_id)
            record = None if session is None else session.value
            if rules.join(record, deployment_id, boot_id, client_id) is Join.WRITE:
                try:
                    # As the first one, or not at all: where there is a delete marker, the session has left.
                    await store.update(session_id, client_id, 0)
                    return
                except LostRace:
                    entry = await store.get(session_id)
                    if entry is not None:
                        if entry.value != client_id:
                            await store.update(session_id, client_id, entry.revision)
                        return
            await self._kick(deployment_id, session_id)

        await _until_won(write)

    async def _leave(self, deployment_id: str, session_id: str) -> None:
        store = self._buckets.active_connections

        async def write() -> None:
            session = await self._buckets.sessions.get(session_id)
            verdict = rules.leave(None if session is None else session.value, deployment_id)
            if verdict is Leave.IGNORE:
                return
            entry = await store.get(session_id)
            if entry is not None:
                await store.delete(session_id, entry.revision)
            elif verdict is Leave.TELL:
                await store.delete(session_id)

        await _until_won(write)

    async def _kick(self, deployment_id: str, session_id: str) -> None:
        command = encode(Kick(session_id, "the session is over"))
        await self._bus.publish(self._bus.subjects.commands(deployment_id), command)


async def _until_won(write: Callable[[], Awaitable[None]]) -> None:
    """Read and compare-and-set; whoever loses reads again. Raises `LostRace` after a few times."""
    for left in range(_TRIES - 1, -1, -1):
        try:
            await write()
            return
        except LostRace:
            if not left:
                raise


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """All of them, some side by side; raises the first error after all have been tried."""
    room = asyncio.Semaphore(_SIDE_BY_SIDE)

    async def one(work: Awaitable[None]) -> None:
        async with room:
            await work

    for outcome in await asyncio.gather(*map(one, works), return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome
