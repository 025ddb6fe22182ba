"""Silence is not death while the game servers' events are not read up to now: nothing ends for it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from nats.aio.client import Client

from tests.faults.real_servers import active, echoes
from tests.isolated.world import IsolatedWorld
from tests.matchmaker.world import ARENA
from tipoff_launcher.records import Record
from tipoff_launcher.recovery import LeaseProbe
from tipoff_matchmaker.hearing import Position, trouble
from tipoff_matchmaker.service import Matchmaker
from tipoff_orchestrator_client.base import RunState
from tipoff_shared.event_stream import DURABLE
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import SessionState

ONE_SEAT_EACH = msgspec.structs.replace(ARENA, seats=1, max_deployments=3, empty_ttl=60)

Trouble = Callable[[IsolatedWorld, asyncio.Event], contextlib.AbstractAsyncContextManager[None]]


@contextlib.asynccontextmanager
async def flooded(isolated: IsolatedWorld, stop: asyncio.Event) -> AsyncIterator[None]:
    """Garbage in the names of deployments that nobody started, faster than it is read; the stream is small, so that it
    is full as a large one would be after a longer time."""
    bus = isolated.world.bus
    await limit(bus, max_msgs=300)
    settings = isolated.nats.settings("gameserver")
    nc = Client()
    await nc.connect(servers=list(settings.servers), user=settings.user, password=settings.password.reveal())

    async def flood() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            for each in range(200):
                await nc.publish(bus.subjects.events(f"invented-{number}-{each}"), b"garbage")
            await nc.flush()

    task = asyncio.create_task(flood())
    try:
        yield
    finally:
        stop.set()
        await task
        await nc.close()
        await limit(bus, max_msgs=100_000)


@contextlib.asynccontextmanager
async def unread(isolated: IsolatedWorld, stop: asyncio.Event) -> AsyncIterator[None]:
    """No matchmaker gets an event; the stream takes all of them."""
    bus = isolated.world.bus
    subject = f"$JS.API.CONSUMER.PAUSE.{bus.subjects.events_stream}.{DURABLE}"
    answer = await bus.nc.request(subject, json.dumps({"pause_until": "2100-01-01T00:00:00Z"}).encode())
    assert json.loads(answer.data)["paused"]
    try:
        yield
    finally:
        await bus.nc.request(subject, b"{}")


@contextlib.asynccontextmanager
async def refused(isolated: IsolatedWorld, stop: asyncio.Event) -> AsyncIterator[None]:
    """The stream takes no event, as on a full disk."""
    bus = isolated.world.bus
    await limit(bus, max_msg_size=1)
    try:
        yield
    finally:
        await limit(bus, max_msg_size=70_000)


async def limit(bus: Bus, **changes: int) -> None:
    info = await bus.js.stream_info(bus.subjects.events_stream)
    for name, value in changes.items():
        setattr(info.config, name, value)
    await bus.js.update_stream(info.config)


async def is_deaf(matchmaker: Matchmaker) -> bool:
    return matchmaker.parts.hearing.deaf


async def settles(world: IsolatedWorld, matchmaker: Matchmaker) -> None:
    async def settled() -> bool:
        return matchmaker.parts.hearing.settled

    await world.world.eventually(settled, "the matchmaker hears its servers", timeout=15)


async def without_lease(isolated: IsolatedWorld, ready: SessionReady) -> bool:
    return await isolated.world.buckets.gameservers.get(ready.deployment_id) is None


@pytest.mark.slow  # leases, and the time in which a missing one means nothing
@pytest.mark.row(64)
@pytest.mark.parametrize("trouble", [flooded, unread, refused])
async def test_nobody_is_ended_while_events_are_not_read(isolated: IsolatedWorld, trouble: Trouble) -> None:
    """Both leases expire; players go on for longer than any grace. Afterwards a server that is dead is missed."""
    world = isolated.world
    async with (
        world.matchmaker(ONE_SEAT_EACH, profile="isolated") as matchmaker,
        active(world) as (first, one),
        active(world) as (second, other),
    ):
        await settles(isolated, matchmaker)
        stop = asyncio.Event()
        async with trouble(isolated, stop):
            await world.eventually(lambda: is_deaf(matchmaker), "the trouble is noticed", timeout=10)
            for ready in (first, second):
                await world.eventually(lambda ready=ready: without_lease(isolated, ready), "no lease", 15)
            until = time.monotonic() + 4  # two TTLs and the grace are 3 s
            while time.monotonic() < until:
                assert await echoes(one)
                assert await echoes(other)
                await matchmaker.parts.reconciler.once()
                await asyncio.sleep(0.2)  # nobody is ended in all of that time
        for ready in (first, second):
            session = await world.session(ready.session_id)
            assert session is not None
            assert session.state is SessionState.ACTIVE
        await settles(isolated, matchmaker)
        assert not await without_lease(isolated, first)
        await isolated.servers.crash(first.deployment_id)  # its orchestrator goes on saying that it runs
        await world.session_becomes(first.session_id, SessionState.GONE, timeout=15)
        assert await echoes(other)


@pytest.mark.slow
@pytest.mark.row(64)
async def test_a_start_is_not_given_up_while_its_lease_cannot_be_heard(isolated: IsolatedWorld) -> None:
    """The server is ready at once, and says so; events are read again only after its `start_timeout`."""
    world = isolated.world
    hasty = msgspec.structs.replace(ONE_SEAT_EACH, start_timeout=1.0, request_timeout=20)
    async with world.matchmaker(hasty, profile="isolated") as matchmaker:
        await settles(isolated, matchmaker)
        async with unread(isolated, asyncio.Event()):
            await world.eventually(lambda: is_deaf(matchmaker), "the trouble is noticed")
            answers = await world.ask()
            await world.eventually(lambda: world.living(1), "a server runs")
            await asyncio.sleep(2.5)  # the start's time is over, twice
            assert await world.living(1)
            assert list(world.fake.started.values()) == [1]
        assert isinstance(await answers.end(timeout=10), SessionReady)


@pytest.mark.slow
@pytest.mark.row(64)
async def test_a_launcher_stops_no_server_while_the_matchmaker_does_not_hear_it(
    isolated: IsolatedWorld,
) -> None:
    """A launcher that starts anew adopts servers that have a lease: whether one can be written, a matchmaker says."""
    world = isolated.world
    record = Record("arena-1", "iso", "arena", "1", RunState.RUNNING, "process", 0.0, isolated=True)
    probe = LeaseProbe(world.bus)
    async with world.matchmaker(ONE_SEAT_EACH, profile="isolated") as matchmaker:

        async def writable() -> bool:
            return await probe.writable_since(record) is not None

        await world.eventually(writable, "leases are written")
        async with unread(isolated, asyncio.Event()):
            await world.eventually(lambda: is_deaf(matchmaker), "the trouble is noticed")
            assert not await writable()
        await world.eventually(writable, "leases are written again")


@pytest.mark.row(64)
async def test_events_of_unknown_deployments_are_thrown_away_one_by_one(isolated: IsolatedWorld) -> None:
    """A thousand of them in front of a player's leave: none is kept, and the leave is not lost with them."""
    world = isolated.world
    disturbed: list[float] = []
    async with world.matchmaker(ONE_SEAT_EACH, profile="isolated") as matchmaker:
        matchmaker.parts.hearing.subscribe(disturbed.append)
        async with active(world) as (ready, _):
            for number in range(1000):
                await world.bus.publish(world.bus.subjects.events(f"invented-{number}"), b"garbage")
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert session.reason == "the player left"

        async def empty() -> bool:
            info = await world.bus.js.stream_info(world.bus.subjects.events_stream)
            return info.state.messages == 0

        await world.eventually(empty, "none is kept")
        assert disturbed == []


@pytest.mark.row(64)
@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (Position(10, 0, 100, 0, 1000), ""),
        (Position(10, 50, 100, 500, 1000), ""),
        (Position(10, 51, 100, 0, 1000), "the stream of their events is full: 51 of 100 events"),
        (Position(10, 1, 100, 501, 1000), "the stream of their events is full: 501 of 1000 bytes"),
        (Position(10, 10**9, -1, 10**9, 0), ""),  # an operator has taken the limits away
        (Position(10, 1, 100, 1, 1000, probed_at=9.5), ""),
        (Position(10, 1, 100, 1, 1000, probed_at=8.9), "events are read more than 1 s late"),
        (Position(10, 0, 100, 0, 1000, refused="full"), "the stream of their events takes none: full"),
    ],
)
def test_what_keeps_servers_from_being_heard(position: Position, expected: str) -> None:
    assert trouble(position, patience=1) == expected
