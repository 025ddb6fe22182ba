"""Measures the real stack, by `tipoff up`: how fast it is ready, how fast players get in, how fast seats come back.

The plays measured here never claim their seats, which stay taken until the claim deadline. So every measurement starts
with enough ready servers of 1,000 seats.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from bench.players import Outcome, play_many
from tipoff.testing import RunningUp, running_up
from tipoff_client_sdk import connect
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import connect as connect_nats

WARM_SERVERS = 8
SEATS = 1000
GAMES = f"""
[[game]]
name = "arena"
version = "1"
seats = {SEATS}
min_ready = {WARM_SERVERS}
max_deployments = 24
empty_ttl = 5

[game.process]
command = ["python", "-m", "tipoff_arena.server"]
env = {{ ARENA_BOTS = "0" }}

[[game]]
name = "arena"
version = "cold"
seats = 16
min_ready = 0
max_deployments = 2
empty_ttl = 0

[game.process]
command = ["python", "-m", "tipoff_arena.server"]
env = {{ ARENA_BOTS = "0" }}
"""


def run() -> Iterator[dict[str, Any]]:
    """Yield each figure as soon as it is measured."""
    with asyncio.Runner() as runner:
        figures = _measure()

        async def following() -> dict[str, Any] | None:
            return await anext(figures, None)

        while (measured := runner.run(following())) is not None:
            yield measured


def figure(name: str, value: float, unit: str, **more: Any) -> dict[str, Any]:
    return {"figure": name, "value": round(value, 4), "unit": unit, **more}


async def _measure() -> AsyncIterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch:
        games = Path(scratch) / "games.toml"
        games.write_text(GAMES)
        began = time.perf_counter()
        async with running_up(Path(scratch) / "state", games=games) as up:
            yield figure("up to ready", time.perf_counter() - began, "s")
            await _ready_servers(up, WARM_SERVERS)
            for measure in (_plays, _cold_start, _disconnect_to_free, _crash_to_free):
                for measured in await measure(up):
                    yield measured
        for count in (1, 2, 3):
            for measured in await _replicas(Path(scratch) / f"state-{count}", games, count):
                yield measured


async def _ready_servers(up: RunningUp, wanted: int) -> None:
    """Wait until `wanted` servers of version 1 are ready without a seat."""
    async with asyncio.timeout(120):
        while True:
            deployments = (await up.status())["deployments"]
            ready = [
                d for d in deployments if d["state"] == "ready" and not d["seats"] and d["version"] == "1"
            ]
            if len(ready) >= wanted:
                return
            await asyncio.sleep(0.2)


async def _plays(up: RunningUp) -> list[dict[str, Any]]:
    await play_many(
        up.url, "arena", "1", plays=200, in_flight=10
    )  # caches and connections are warm after this
    figures: list[dict[str, Any]] = []
    for in_flight, plays in ((1, 500), (50, 4000), (500, 3000)):
        await _ready_servers(up, -(-plays // SEATS))
        outcome = await play_many(up.url, "arena", "1", plays=plays, in_flight=in_flight)
        figures += _outcome(outcome, in_flight, plays)
    return figures


def _outcome(outcome: Outcome, in_flight: int, plays: int) -> list[dict[str, Any]]:
    name = f"{in_flight} in flight"
    more = {"plays": plays, "errors": outcome.errors} if outcome.errors else {"plays": plays}
    return [
        figure(f"plays/s, {name}", outcome.per_second, "1/s", **more),
        figure(f"play p50, {name}", outcome.quantile(0.5) * 1000, "ms"),
        figure(f"play p99, {name}", outcome.quantile(0.99) * 1000, "ms"),
    ]


async def _cold_start(up: RunningUp) -> list[dict[str, Any]]:
    """The time from the request to the connection when no server of this version runs; includes the start of Python."""
    began = time.perf_counter()
    async with connect(up.url, game="arena", version="cold"):
        return [figure("cold start to connected", time.perf_counter() - began, "s")]


async def _disconnect_to_free(up: RunningUp, samples: int = 100) -> list[dict[str, Any]]:
    """The time from a player's close until a watcher of KV sees the record without the seat."""
    took: list[float] = []
    async with connect_nats(up.nats_settings, name="bench") as bus:
        deployments = buckets(bus).deployments
        async with deployments.watch() as changes:
            for _ in range(samples):
                async with connect(up.url, game="arena", version="1") as player:
                    session, server = player.session_id, player.deployment_id
                    taken = await deployments.get(server)
                    assert taken is not None
                    assert session in taken.value.seats
                left = time.perf_counter()
                free = False
                async with asyncio.timeout(20):
                    while not free:
                        for change, ack in await changes.fetch(timeout=1):
                            await ack()
                            if change.key == server and change.revision > taken.revision:
                                free = change.value is None or session not in change.value.seats
                took.append(time.perf_counter() - left)
    took.sort()
    return [
        figure("disconnect to seat free p50", took[len(took) // 2] * 1000, "ms"),
        figure("disconnect to seat free p99", took[int(len(took) * 0.99)] * 1000, "ms"),
    ]


async def _crash_to_free(up: RunningUp, samples: int = 10) -> list[dict[str, Any]]:
    """The time from kill -9 of a game server until its seats are gone."""
    took: list[float] = []
    async with connect_nats(up.nats_settings, name="bench") as bus:
        kv = buckets(bus)
        async with kv.deployments.watch() as changes:
            for _ in range(samples):
                async with connect(up.url, game="arena", version="1") as player:
                    lease = await kv.gameservers.get(player.deployment_id)
                    taken = await kv.deployments.get(player.deployment_id)
                    assert lease is not None
                    assert taken is not None
                    killed = time.perf_counter()
                    os.kill(lease.value.pid, signal.SIGKILL)
                    free = False
                    async with asyncio.timeout(40):
                        while not free:
                            for change, ack in await changes.fetch(timeout=1):
                                await ack()
                                if change.key == player.deployment_id and change.revision > taken.revision:
                                    free = change.value is None or not change.value.seats
                took.append(time.perf_counter() - killed)
    took.sort()
    return [
        figure("server crash to seats free p50", took[len(took) // 2] * 1000, "ms"),
        figure("server crash to seats free max", took[-1] * 1000, "ms"),
    ]


async def _replicas(state: Path, games: Path, count: int) -> list[dict[str, Any]]:
    """Plays per second with `count` matchmakers, `count` httpds and the load on the same cores."""
    arguments = ("--matchmakers", str(count), "--httpds", str(count))
    async with running_up(state, games=games, arguments=arguments) as up:
        await _ready_servers(up, WARM_SERVERS)
        await play_many(up.url, "arena", "1", plays=200, in_flight=10)
        outcome = await play_many(up.url, "arena", "1", plays=3000, in_flight=50)
    more = {"errors": outcome.errors} if outcome.errors else {}
    return [figure(f"plays/s, 50 in flight, {count} matchmaker(s)", outcome.per_second, "1/s", **more)]
