"""Stores that fail on order, relays on them, and real httpds that serve the turn relay."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import pytest

from tipoff_matchmaker_httpd.server.run import RunningHttpd, run_httpd
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings
from tipoff_turn_relay.relay import TurnRelay
from tipoff_turn_relay.store import Inbox, MemoryRecords, NatsRecords, RecordStore


class Unreliable(MemoryRecords):
    """Fails as JetStream does: a write that raises may have been carried out, or be carried out later."""

    def __init__(self, seed: int, failures: float) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.failures = failures
        self.writes = 0
        self._later: list[tuple[str, bytes, int, float | None]] = []

    async def _disturb(self) -> None:
        await asyncio.sleep(0)
        for write in self._later[:]:
            if write in self._later and self.random.random() < 0.5:
                self._later.remove(write)
                await self._write(*write)
        if self.random.random() < self.failures / 2:
            raise Unavailable("the store failed, as ordered")

    async def _write(self, key: str, value: bytes, revision: int, ttl: float | None) -> None:
        with suppress(LostRace):
            await super().set(key, value, revision, ttl=ttl)

    async def get(self, key: str) -> Any:
        await self._disturb()
        return await super().get(key)

    async def set(self, key: str, value: bytes, revision: int, *, ttl: float | None = None) -> int:
        await self._disturb()
        if self.random.random() < self.failures:
            if self.random.random() < 0.5:
                self._later.append((key, value, revision, ttl))
            else:
                await self._write(key, value, revision, ttl)
            raise Unavailable("the write failed, as ordered", retry_after=1)
        self.writes += 1
        return await super().set(key, value, revision, ttl=ttl)


@pytest.fixture
def unreliable() -> type[Unreliable]:
    return Unreliable


@asynccontextmanager
async def relays(pairing: RecordStore, games: RecordStore, count: int = 2) -> AsyncIterator[list[TurnRelay]]:
    """Several relays on the same stores, as several httpds are."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(count):
            tasks = await stack.enter_async_context(Tasks("relay"))
            relay = TurnRelay(pairing, games, tasks, patience=5.0)
            await stack.enter_async_context(relay.list.running())
            made.append(relay)
        yield made


@pytest.fixture(name="relays")
def relays_fixture() -> Any:
    return relays


@pytest.fixture(params=["memory", "nats"])
async def store(request: pytest.FixtureRequest, nats: Bus) -> AsyncIterator[RecordStore]:
    """Both kinds of store, for the contract they share."""
    if request.param == "memory":
        yield MemoryRecords()
        return
    async with nats_records(nats, "turn_test") as records:
        yield records


@asynccontextmanager
async def nats_records(bus: Bus, bucket: str, max_records: int = 1000) -> AsyncIterator[NatsRecords]:
    inbox = Inbox(bus)
    await inbox.subscribe()
    records = NatsRecords(bus, bucket, inbox)
    await records.create_bucket("for a test", max_records)
    try:
        yield records
    finally:
        inbox.close()


@pytest.fixture(name="nats_records")
def nats_records_fixture() -> Any:
    return nats_records


Start = Callable[..., Awaitable[RunningHttpd]]


@pytest.fixture
async def start(settings: NatsSettings) -> AsyncIterator[Start]:
    """`await start(**settings)`: an httpd with these settings, until the test ends."""
    async with AsyncExitStack() as stack:

        async def starting(**changes: Any) -> RunningHttpd:
            made = Settings.load(**({"port": 0, "drain_timeout": 2.0} | changes))
            return await stack.enter_async_context(run_httpd(made, settings))

        yield starting


@pytest.fixture
async def httpd(start: Start) -> RunningHttpd:
    return await start()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        yield client


class Say:
    """One player at one httpd: `await say("2,*,30,*,*")`."""

    def __init__(self, http: httpx.AsyncClient, url: str) -> None:
        self._http = http
        self.url = url

    async def __call__(self, body: str | bytes) -> str:
        """The answer; its status is checked against it."""
        content = body.encode() if isinstance(body, str) else body
        response = await self._http.post(self.url, content=content)
        assert response.status_code == (200 if response.text.startswith("0/") else 400), response.text
        return response.text


async def paired(one: Say, other: Say, names: tuple[str, str] = ("Ada", "Bob")) -> tuple[str, str]:
    """Take two from registering to `0/8`; the game keys of `one` (player 0) and `other` (player 1)."""
    first = (await one(f"0,{names[0]},*,{names[1]},*")).removeprefix("0/0/")
    second = (await other(f"0,{names[1]},*,{names[0]},*")).removeprefix("0/0/")
    assert await other(f"2,*,{second},*,*") == f"0/3/{names[0]}"
    assert await one(f"2,*,{first},*,*") == f"0/4/{names[1]}"
    assert await one(f"3,*,{first},*,*") == "0/6/"
    assert await other(f"3,*,{second},*,*") == "0/5/"
    assert await other(f"4,*,{second},*,*") == "0/7/*"
    keys = []
    for say, key, player in ((one, first, "0"), (other, second, "1")):
        start, _, number = (await say(f"4,*,{key},*,*")).removeprefix("0/8/").partition("|")
        assert number == player
        keys.append(start)
    return keys[0], keys[1]


@pytest.fixture(name="paired")
def paired_fixture() -> Any:
    return paired


@pytest.fixture
def say(http: httpx.AsyncClient) -> Callable[..., Say]:
    """`say(httpd)`: a player at that httpd's /turn; `say(url=...)`: anywhere."""

    def saying(httpd: RunningHttpd | None = None, *, url: str = "") -> Say:
        return Say(http, url or f"{httpd.url if httpd else ''}/turn")

    return saying
