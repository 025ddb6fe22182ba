"""Looks at a running stack: the records in NATS, the processes, the players, and JetStream's streams."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

import httpx
import nats.errors

from tests.soak.bots import Crowd
from tests.soak.invariants import Look
from tests.soak.processes import game_servers
from tests.soak.stack import LIMITS, RESUME_TTL, TOKEN_TIMEOUT, Stack
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.records import DeploymentState, SessionState

NOTICED = 5.0
"""Seconds in which a server that has noticed the silence of a player has told so."""
DURABLE = {"matchmaker-connections", "matchmaker-leases", "api-deleter-1"}
"""Consumers that stay without a reader."""


_TASKS = re.compile(r"^tipoff_\w+_tasks (\S+)", re.MULTILINE)
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
        vanished=crowd.vanished(TOKEN_TIMEOUT + RESUME_TTL + NOTICED),
        limits=LIMITS,
        missing=missing.result(),
    )


async def counts(stack: Stack) -> dict[str, float]:
    """What should stay about equal under a steady load: JetStream's size, NATS's connections and subscriptions, and the
    tasks of each matchmaker and httpd. What cannot be read now is left out."""
    found: dict[str, float] = {}
    with contextlib.suppress(*AWAY):
        async with asyncio.timeout(5):
            infos = await stack.bus.js.streams_info()
        found["JetStream consumers"] = sum(info.state.consumer_count for info in infos)
        found["JetStream messages"] = sum(info.state.messages for info in infos)
        found["JetStream kB"] = sum(info.state.bytes for info in infos) / 1000
    async with httpx.AsyncClient(timeout=3) as client:
        with contextlib.suppress(httpx.HTTPError):
            answer = (await client.get(f"{stack.monitor}/varz")).json()
            found["NATS connections"] = answer["connections"]
            found["NATS subscriptions"] = answer["subscriptions"]
        for name, url in stack.metrics.items():
            with contextlib.suppress(httpx.HTTPError):
                if tasks := _TASKS.search((await client.get(url)).text):
                    found[f"{name} tasks"] = float(tasks[1])
    return found


async def consumers_without_reader(stack: Stack) -> list[str]:
    """`stream/consumer` of those that neither stay by design nor have a reader waiting."""
    return [
        f"{info.config.name}/{consumer.name}"
        for info in await stack.bus.js.streams_info()
        for consumer in await stack.bus.js.consumers_info(info.config.name or "")
        if consumer.name not in DURABLE and not consumer.num_waiting
    ]
