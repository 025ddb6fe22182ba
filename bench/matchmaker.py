"""Measures the matchmaker by itself over NATS, with free seats: plays per second and the time of one play.

Three processes on this machine: nats-server, one matchmaker (with a fake orchestrator whose servers have written their
leases), and the load, which sends requests on NATS as httpd does. No player connects, so every play keeps its seat,
and there are enough seats. The last figure is the whole life of a session: play, connect, leave.

    python -m bench matchmaker                    (BENCH_PROFILE=FILE writes a profile of the matchmaker)
"""

from __future__ import annotations

import asyncio
import cProfile
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import msgspec
from nats.aio.msg import Msg

from tipoff.up.embedded_nats import embedded_nats
from tipoff_matchmaker.service import Matchmaker, run_matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared.games import Game, Games
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.kv.changes import Changes
from tipoff_shared.messages import PlayRequest, Transports, UdpAddress, encode_request
from tipoff_shared.names import new_boot_id, new_request_id
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.netcode import PrivateKey
from tipoff_shared.records import DeploymentRecord, GameserverLease, LeaseState
from tipoff_shared.settings import NatsSettings
from tipoff_shared.subjects import REQUEST_ID_HEADER

SEATS, SERVERS = 64, 150
PLAYS = {1: 500, 50: 4000, 500: 4000}
GAME = Game(
    "bench",
    "1",
    seats=SEATS,
    min_ready=SERVERS,
    max_deployments=SERVERS,
    orchestrator="fake",
    start_timeout=60,
)


class Load:
    """Sends play requests, with one wildcard inbox for all answers, as httpd does."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._inbox = bus.nc.new_inbox()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._next = 0
        # Nobody connects, so each address asks less often than it may hold unclaimed seats.
        self._requests = [
            encode_request(PlayRequest(GAME.name, GAME.version, client_ip=f"203.0.{n // 250}.{n % 250}"))
            for n in range(1000)
        ]
        self._subject = bus.subjects.request(GAME.name, GAME.version)

    async def open(self) -> None:
        await self._bus.nc.subscribe(self._inbox + ".*", cb=self._heard)

    async def _heard(self, msg: Msg) -> None:
        if msg.data.startswith((b'{"SessionReady"', b'{"Error"')):
            future = self._waiting.pop(msg.subject[len(self._inbox) + 1 :])
            future.set_result(msg.data)

    async def play(self) -> bytes:
        self._next += 1
        name = str(self._next)
        future = self._waiting[name] = asyncio.get_running_loop().create_future()
        await self._bus.nc.publish(
            self._subject,
            self._requests[self._next % len(self._requests)],
            reply=f"{self._inbox}.{name}",
            headers={REQUEST_ID_HEADER: new_request_id()},
        )
        answer = await future
        if not answer.startswith(b'{"SessionReady"'):
            raise RuntimeError(f"a play failed: {answer!r}")
        return answer


def run() -> Iterator[dict[str, Any]]:
    """Figures of this machine; about 15 s."""
    import uvloop

    yield from uvloop.run(_measure())


async def _measure() -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = []

    def figure(name: str, value: float, unit: str) -> None:
        figures.append({"figure": name, "value": round(value, 2), "unit": unit})

    async with _stack() as bus:
        load = Load(bus)
        await load.open()
        for _ in range(50):
            await load.play()
        for in_flight, plays in PLAYS.items():
            taken, rate = await _plays(load, in_flight, plays)
            figure(f"plays/s, {in_flight} in flight", rate, "1/s")
            for percent in (50, 99):
                value = quantiles(taken, n=100)[percent - 1] * 1000
                figure(f"play p{percent}, {in_flight} in flight", value, "ms")
        freed = await _leave(bus, load, 200)
        for percent in (50, 99):
            value = quantiles(freed, n=100)[percent - 1] * 1000
            figure(f"disconnect to seat free p{percent}", value, "ms")
        figure("sessions/s through their whole life, 50 in flight", await _lives(bus, load, 1000), "1/s")
    return figures


async def _plays(load: Load, in_flight: int, plays: int) -> tuple[list[float], float]:
    """Seconds of each play, and plays per second; each of `in_flight` players sends one request after another."""
    taken: list[float] = []
    left = plays

    async def player() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began = time.perf_counter()
            await load.play()
            taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(player() for _ in range(in_flight)))
    return taken, len(taken) / (time.perf_counter() - began)


async def _lives(bus: Bus, load: Load, sessions: int) -> float:
    """Sessions per second that were played, connected and left, until the last record is `gone`."""
    buckets = await create_buckets(bus)
    left = sessions
    mine: set[str] = set()

    async def player() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            ready = msgspec.json.decode(await load.play())["SessionReady"]
            mine.add(ready["session_id"])
            await buckets.active_connections.put(ready["session_id"], ready["client_id"])
            await buckets.active_connections.delete(ready["session_id"])

    began = time.perf_counter()
    async with buckets.sessions.watch() as changes:
        players = asyncio.gather(*(player() for _ in range(50)))
        over: set[str] = set()
        while len(over & mine) < sessions:
            for change, ack in await changes.fetch(batch=1000):
                if change.value is not None and change.value.state == "gone":
                    over.add(change.key)
                await ack()
        await players
    return sessions / (time.perf_counter() - began)


async def _leave(bus: Bus, load: Load, players: int) -> list[float]:
    """Seconds from the delete that a gameserver writes when a player leaves, until the seat is free in the
    deployment's record; one player after another."""
    buckets = await create_buckets(bus)
    taken: list[float] = []
    async with buckets.deployments.watch() as changes:
        for _ in range(players):
            ready = msgspec.json.decode(await load.play())["SessionReady"]
            session, server = ready["session_id"], ready["deployment_id"]
            await buckets.active_connections.put(session, ready["client_id"])
            await _until(changes, server, session, seated=True)
            began = time.perf_counter()
            await buckets.active_connections.delete(session)
            await _until(changes, server, session, seated=False)
            taken.append(time.perf_counter() - began)
    return taken


async def _until(changes: Changes[DeploymentRecord], server: str, session: str, *, seated: bool) -> None:
    """Read changes until the server's record has this session among its seats, or no longer has it."""
    there = False
    while not there:
        for change, ack in await changes.fetch(batch=1000):
            await ack()
            if change.key == server and change.value is not None:
                there = (session in change.value.seats) is seated


@asynccontextmanager
async def _stack() -> AsyncIterator[Bus]:
    """nats-server and a matchmaker in separate processes, all seats free."""
    with tempfile.TemporaryDirectory() as store:
        async with embedded_nats(Path(store)) as server:
            settings = server.settings()
            matchmaker = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bench.matchmaker",
                env=os.environ | settings.to_environment(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            try:
                async with connect(settings, name="bench") as bus:
                    assert matchmaker.stdout is not None
                    async with asyncio.timeout(60):
                        line = await matchmaker.stdout.readline()
                    if line.strip() != b"ready":
                        raise RuntimeError("the matchmaker did not start")
                    yield bus
            finally:
                await matchmaker.communicate(b"")  # closing its standard input ends it


@asynccontextmanager
async def matchmaker_of(game: Game, nats: NatsSettings, settings: Settings) -> AsyncIterator[Matchmaker]:
    """A matchmaker in this process, for `game` only. Its servers are fakes that have written their leases."""
    games = Games({game.key: game}, {game.key: PrivateKey.generate()}, Path())
    async with connect(nats, name="servers") as bus:
        buckets = await create_buckets(bus)

        async def announce(spec: DeploySpec) -> None:
            transports = Transports(udp=UdpAddress("127.0.0.1", 30_000))
            lease = GameserverLease(
                spec.deployment_id,
                new_boot_id(),
                spec.game,
                spec.version,
                LeaseState.READY,
                transports,
                game.seats,
            )
            await buckets.gameservers.put(spec.deployment_id, lease, ttl=600)

        fake = FakeOrchestrator("fake", on_start=announce)
        async with run_matchmaker(settings, games, nats, {"fake": fake}) as matchmaker:
            yield matchmaker
        await fake.close()


async def all_ready(matchmaker: Matchmaker, game: Game, count: int) -> None:
    """Returns when `count` servers of the game are ready; raises `TimeoutError` after a minute."""
    there = asyncio.Event()

    def look(*_: object) -> None:
        if sum(record.state == "ready" for record in matchmaker.parts.deployments.of(*game.key)) >= count:
            there.set()

    matchmaker.parts.deployments.subscribe(look)
    look()
    async with asyncio.timeout(60):
        await there.wait()


async def _serve() -> None:
    """The matchmaker's process."""
    nats = NatsSettings.from_environment()
    async with matchmaker_of(GAME, nats, Settings(max_requests=5000)) as matchmaker:
        await all_ready(matchmaker, GAME, SERVERS)
        print("ready", flush=True)
        profiler = cProfile.Profile()
        if path := os.environ.get("BENCH_PROFILE"):
            profiler.enable()
        await asyncio.to_thread(sys.stdin.read)
        if path:
            profiler.disable()
            profiler.dump_stats(path)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve())
