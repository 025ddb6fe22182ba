"""Servers of a matchmaker that does nothing by itself: its parts are composed, their loops are not started."""

from __future__ import annotations

import asyncio

import msgspec

from tests.matchmaker.world import World
from tipoff_matchmaker.compose import Parts
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_shared.kv.changes import Change
from tipoff_shared.messages import Transports, UdpAddress
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    GameserverLease,
    LeaseState,
    SessionRecord,
    SessionState,
)

READY = DeploymentState.READY


class Fleet:
    """What a test does not call does not happen."""

    def __init__(self, world: World, parts: Parts) -> None:
        self.world = world
        self.parts = parts

    async def server(self, state: DeploymentState = READY, *, id: str = "one", **changes: object) -> str:
        """A server that runs at the orchestrator, with a record in this state."""
        record = DeploymentRecord(id, state, "arena", "1", "fake", capacity=4, created_at=1.0)
        await self.parts.deployments.create(msgspec.structs.replace(record, **changes))
        await self.world.fake.deploy(DeploySpec(id, "arena", "1", 4))
        return id

    async def says(self, id: str = "one", **changes: object) -> Change[GameserverLease]:
        """Write its lease; the message of that."""
        lease = GameserverLease(
            id,
            "boot",
            "arena",
            "1",
            LeaseState.READY,
            Transports(udp=UdpAddress("127.0.0.1", 7777)),
            capacity=4,
        )
        lease = msgspec.structs.replace(lease, **changes)
        await self.world.buckets.gameservers.put(id, lease)
        entry = await self.world.buckets.gameservers.get(id)
        assert entry is not None
        return Change(id, lease, entry.revision)

    async def falls_silent(self, id: str = "one", *, expired: bool = True) -> Change[GameserverLease]:
        """Remove its lease; the message of that."""
        entry = await self.world.buckets.gameservers.get(id)
        await self.world.buckets.gameservers.delete(id)
        return Change(id, None, 1000 if entry is None else entry.revision + 1, expired)

    async def settled(self) -> None:
        """All that was begun has ended."""
        while running := self.parts.tasks.running:
            await asyncio.wait(running, timeout=5)

    def record(self, id: str = "one") -> DeploymentRecord:
        record = self.parts.deployments.get(id)
        assert record is not None
        return record

    async def written(self, id: str = "one") -> DeploymentRecord:
        """The record in the bucket."""
        entry = await self.world.buckets.deployments.get(id)
        assert entry is not None
        return entry.value

    async def session(self, id: str, state: SessionState, **changes: object) -> SessionRecord:
        """A session with a seat on the server `one`."""
        record = SessionRecord(id, state, "arena", "1", "7", "me", created_at=1.0, deadline=9e9)
        record = msgspec.structs.replace(record, **{"deployment_id": "one", **changes})
        await self.world.buckets.sessions.put(id, record)
        return record

    def asked(self, operation: str = "get") -> int:
        return sum(called == operation for called, _ in self.world.fake.calls)

    def trusted(self, id: str = "one") -> bool:
        return id in self.parts.trust
