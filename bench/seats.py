"""Measures how long players wait for a seat while one address asks for seats and never connects.

The matchmaker runs in this process, on fake servers with 16 seats together; nats-server is another process. The
attacker asks from one address at 100 places at once, as many as one httpd allows it, and again after each answer.
The victims come from addresses of their own, ten at a time; each connects, plays for a fifth of a second and leaves.
The same is measured alone, beside the attacker without a limit on unclaimed seats, and beside it with the limit.

    python -m bench seats
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.msg import Msg

from bench.matchmaker import all_ready, matchmaker_of
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_matchmaker.settings import Settings
from tipoff_shared.games import Game
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.messages import PlayRequest, encode_request
from tipoff_shared.names import new_request_id
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.subjects import REQUEST_ID_HEADER, TIMEOUT_HEADER

GAME = Game("bench", "1", seats=4, min_ready=4, max_deployments=4, empty_ttl=600, orchestrator="fake")
ATTACKER = "203.0.113.1"
PLACES, VICTIMS = 100, 10
SECONDS = 75.0
"""A little longer than a seat is held, so that one whole hold lies within."""


def run() -> Iterator[dict[str, Any]]:
    """Figures of this machine; about four minutes."""
    import uvloop

    for name, most, attacked in (
        ("without an attacker", 32, False),
        ("beside one, without a limit", 0, True),
        ("beside one, with the limit", 32, True),
    ):
        waits, unserved = uvloop.run(_measure(most, attacked=attacked))
        waits.sort()
        more = {"players": len(waits), "not served": unserved}
        for label, value in (("p50", waits[len(waits) // 2]), ("longest", waits[-1])):
            figure = f"wait for a seat {label}, {name}"
            yield {"figure": figure, "value": round(value * 1000, 2), "unit": "ms", **more}


async def _measure(most: int, *, attacked: bool) -> tuple[list[float], int]:
    """Seconds that each victim waited, to an answer of any kind, and how many of them got no seat."""
    settings = Settings(unclaimed_per_address=most)
    with tempfile.TemporaryDirectory() as store:
        async with (
            embedded_nats(Path(store)) as server,
            matchmaker_of(GAME, server.settings(), settings) as matchmaker,
            _client(server) as client,
            Tasks("attack") as tasks,
        ):
            await all_ready(matchmaker, GAME, GAME.min_ready)
            if attacked:
                for place in range(PLACES):
                    tasks.start(client.flood(), f"flood/{place}")
                await asyncio.sleep(1)
            end = time.perf_counter() + SECONDS
            await asyncio.gather(*(client.victim(f"203.0.114.{n}", end) for n in range(VICTIMS)))
            return client.waits, client.unserved


class _Client:
    """Asks as httpd does, and writes what game servers write."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.waits: list[float] = []
        self.unserved = 0

    async def flood(self) -> None:
        """Ask, never connect, ask again; after a refusal at once a second later."""
        while True:
            if await self._ask(ATTACKER) is None:
                await asyncio.sleep(1)

    async def victim(self, address: str, end: float) -> None:
        """Play again and again until `end`."""
        buckets = await create_buckets(self._bus)
        while time.perf_counter() < end:
            began = time.perf_counter()
            session = await self._ask(address)
            self.waits.append(time.perf_counter() - began)
            if session is None:
                self.unserved += 1
                continue
            await buckets.active_connections.put(session, "1")
            await asyncio.sleep(0.2)
            await buckets.active_connections.delete(session)

    async def _ask(self, address: str) -> str | None:
        """The session of the seat; None after an error."""
        answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

        async def heard(msg: Msg) -> None:
            if msg.data.startswith((b'{"SessionReady"', b'{"Error"')) and not answer.done():
                answer.set_result(msg)

        inbox = self._bus.nc.new_inbox()
        subscription = await self._bus.nc.subscribe(inbox, cb=heard)
        try:
            await self._bus.nc.publish(
                self._bus.subjects.request(GAME.name, GAME.version),
                encode_request(PlayRequest(GAME.name, GAME.version, client_ip=address)),
                reply=inbox,
                headers={REQUEST_ID_HEADER: new_request_id(), TIMEOUT_HEADER: "65"},
            )
            data = msgspec.json.decode((await answer).data)
        finally:
            await subscription.unsubscribe()
        ready = data.get("SessionReady")
        return None if ready is None else str(ready["session_id"])


@asynccontextmanager
async def _client(server: EmbeddedNats) -> Any:
    async with connect(server.settings(), name="bench") as bus:
        yield _Client(bus)
