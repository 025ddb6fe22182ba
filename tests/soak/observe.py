"""Looks at a running stack: the records in NATS, the processes, the players, and JetStream's streams."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import nats.errors

from tests.soak.bots import Crowd
from tests.soak.invariants import Look
from tests.soak.processes import game_servers
from tests.soak.stack import LIMITS, TOKEN_TIMEOUT, Stack
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.records import DeploymentState, SessionState

NOTICED = 5.0
"""Seconds in which a server that has noticed the silence of a player has told so."""
DURABLE = {"matchmaker-connections", "matchmaker-leases", "api-deleter-1"}
"""Consumers that stay without a reader."""


@dataclass(frozen=True, slots=True)
class Streams:
    """JetStream at one moment: consumers, messages and bytes of all streams; `largest` is the biggest one's name."""

    at: float
    consumers: int
    messages: int
    bytes: int
    largest: str


AWAY = (TipoffError, nats.errors.Error, TimeoutError)
"""What the functions below raise while NATS is away."""


async def look(stack: Stack, crowd: Crowd) -> Look:
    """What must be consistent, as it is now. Raises one of `AWAY` while NATS is away, or after ten seconds."""
    try:
        async with asyncio.timeout(10):
            return await _look(stack, crowd)
    except BaseExceptionGroup as group:
        raise next(iter(group.exceptions)) from group  # the reads fail alike


async def _look(stack: Stack, crowd: Crowd) -> Look:
    kv = buckets(stack.bus)
    async with asyncio.TaskGroup() as group:
        # Side by side: the less time between the reads, the less has changed.
        reading_sessions = group.create_task(kv.sessions.list())
        reading_deployments = group.create_task(kv.deployments.list())
        reading_fleets = group.create_task(kv.fleets.list())
        reading_leases = group.create_task(kv.gameservers.list())
        reading_connections = group.create_task(kv.active_connections.list())
        reading_servers = group.create_task(asyncio.to_thread(game_servers, stack.launcher_dir.parent))
        missing = group.create_task(stack.missing())
    return Look(
        at=time.time(),
        sessions={
            key: entry.value
            for key, entry in reading_sessions.result().items()
            if entry.value.state is not SessionState.GONE
        },
        deployments={
            key: entry.value
            for key, entry in reading_deployments.result().items()
            if entry.value.state is not DeploymentState.GONE
        },
        fleets=[entry.value for entry in reading_fleets.result().values()],
        leases=frozenset(reading_leases.result()),
        connections=frozenset(reading_connections.result()),
        servers=frozenset(server.deployment_id for server in reading_servers.result()),
        players=dict(crowd.players),
        vanished=crowd.vanished(TOKEN_TIMEOUT + NOTICED),
        limits=LIMITS,
        missing=missing.result(),
    )


async def streams(stack: Stack, at: float) -> Streams:
    """The present size of JetStream. Raises one of `AWAY` while NATS is away."""
    infos = await stack.bus.js.streams_info()
    return Streams(
        at,
        sum(info.state.consumer_count for info in infos),
        sum(info.state.messages for info in infos),
        sum(info.state.bytes for info in infos),
        max(infos, key=lambda info: info.state.bytes).config.name or "",
    )


async def consumers_without_reader(stack: Stack) -> list[str]:
    """`stream/consumer` of those that neither stay by design nor have a reader waiting."""
    return [
        f"{info.config.name}/{consumer.name}"
        for info in await stack.bus.js.streams_info()
        for consumer in await stack.bus.js.consumers_info(info.config.name or "")
        if consumer.name not in DURABLE and not consumer.num_waiting
    ]
