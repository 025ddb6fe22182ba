"""NATS has lost records and nobody has read the buckets' ages since: what would end for want of a record waits for that
reading."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from nats.aio.msg import Msg

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import World
from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.isolated.writer import EventWriter
from tipoff_matchmaker.sessions.state_machine import Connected
from tipoff_orchestrator_client.base import Deployment
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, BucketAge
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.messages import Failed, SessionReady, Transports, UdpAddress
from tipoff_shared.records import (
    Ban,
    BanKind,
    Bans,
    GameserverLease,
    Kick,
    LeaseState,
    SessionState,
    decode_command,
    encode,
)
from tipoff_shared.server_events import Lease, Players, ServerEvent

pytestmark = pytest.mark.row(85)


class Store:
    """What befalls the buckets, without a reading of their ages."""

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fleet = fleet
        self._patch = monkeypatch
        self.kicked: list[str] = []

    async def listen(self) -> None:
        async def heard(msg: Msg) -> None:
            if isinstance(command := decode_command(msg.data), Kick):
                self.kicked.append(command.session_id)

        bus = self.fleet.world.bus
        await bus.nc.subscribe(bus.subjects.commands("one"), cb=heard)
        await bus.flush()

    async def comes_back_empty(self, *names: str) -> None:
        """The buckets are lost, and made anew by another matchmaker."""
        bus = self.fleet.world.bus
        for name in names:
            await bus.js.delete_stream(f"KV_{bus.subjects.bucket(name)}")
        await create_buckets(bus)

    async def comes_back_older(self, *names: str) -> None:
        """An older backup: it lacks these buckets' records, and each bucket is the one that it was."""
        for name in names:
            bucket: Bucket[Any] = getattr(self.fleet.world.buckets, name)
            before = await bucket.age()
            await self.fleet.world.bus.js.purge_stream(bucket.stream)
            self.reads(bucket, lambda before=before: msgspec.structs.replace(before, revision=0))

    def reads(self, bucket: Bucket[Any], age: Callable[[], BucketAge]) -> None:
        async def read(_: BucketAge | None = None) -> BucketAge:
            return age()

        self._patch.setattr(bucket, "age", read)

    def holds_the_reading_back(self) -> asyncio.Event:
        """Until the event is set, no age is read."""
        go_on = asyncio.Event()
        bucket = self.fleet.world.buckets.sessions
        age = bucket.age

        async def held(before: BucketAge | None = None) -> BucketAge:
            await go_on.wait()
            return await age(before)

        self._patch.setattr(bucket, "age", held)
        return go_on

    async def connects(self, session_id: str, server: str = "one") -> None:
        """The server reports the player, and the presence reader handles that."""
        await self.fleet.world.buckets.active_connections.put(session_id, "7", server=server)
        await self.fleet.parts.sessions.apply(session_id, Connected())

    async def kicks(self) -> list[str]:
        await self.fleet.settled()
        await self.fleet.world.bus.flush()
        await asyncio.sleep(0.02)  # a message that must not come can only be waited for
        return self.kicked


Befalls = Callable[[Store], Callable[..., Any]]
LOSSES = pytest.mark.parametrize(
    "befalls", [Store.comes_back_empty, Store.comes_back_older], ids=["an empty store", "an older store"]
)


@pytest.fixture
async def store(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """A player on the server `one`; the ages were read before."""
    buckets = fleet.world.buckets
    # A bucket is recognised as older by a write that is missing.
    await buckets.bans.put("other", Ban(BanKind.USER, "other", created_at=1.0))
    await fleet.server()
    await fleet.says(started_at=time.time())
    await fleet.session("s", SessionState.ACTIVE)
    await fleet.parts.reader.read(True)
    store = Store(fleet, monkeypatch)
    await store.listen()
    yield store
    await fleet.settled()


# Players.


@LOSSES
async def test_a_player_whose_session_is_lost_is_not_kicked(store: Store, befalls: Any) -> None:
    await befalls(store, "sessions")
    await store.connects("s")
    assert await store.kicks() == []


@LOSSES
async def test_nobody_is_kicked_while_the_reading_is_held_back(store: Store, befalls: Any) -> None:
    await befalls(store, "sessions")
    go_on = store.holds_the_reading_back()
    await store.connects("s")
    await store.fleet.world.bus.flush()
    await asyncio.sleep(0.05)  # a message that must not come can only be waited for
    assert store.kicked == []
    go_on.set()
    assert await store.kicks() == []


async def test_a_player_without_a_session_is_kicked_after_a_reading_without_a_loss(store: Store) -> None:
    go_on = store.holds_the_reading_back()
    await store.connects("unknown")
    await store.fleet.world.bus.flush()
    assert store.kicked == []
    go_on.set()
    assert await store.kicks() == ["unknown"]


async def test_a_reading_that_began_before_does_not_count(store: Store) -> None:
    """It is on its way when the bucket is lost; the one that follows it tells."""
    go_on = store.holds_the_reading_back()
    reading = asyncio.create_task(store.fleet.parts.reader.read(True))
    await asyncio.sleep(0)  # it begins
    await store.comes_back_empty("sessions")
    await store.connects("s")
    go_on.set()
    assert await store.kicks() == []
    assert "sessions" in (await reading).lost


async def test_where_ages_cannot_be_read_nobody_is_kicked(store: Store) -> None:
    def away() -> BucketAge:
        raise Unavailable("NATS is away")

    store.reads(store.fleet.world.buckets.fleets, away)
    await store.connects("unknown")
    assert await store.kicks() == []


async def test_one_reading_serves_many_players(store: Store) -> None:
    """As after a kill of nats-server, which may bring thousands of old connections back."""
    readings = 0
    age = await store.fleet.world.buckets.fleets.age()

    def counted() -> BucketAge:
        nonlocal readings
        readings += 1
        return age

    store.reads(store.fleet.world.buckets.fleets, counted)
    await asyncio.gather(*(store.connects(f"unknown-{n}") for n in range(50)))
    assert len(await store.kicks()) == 50
    assert readings < 25


@pytest.mark.parametrize(
    ("started_at", "kicked"),
    [(1.0, False), (None, False), (9e9, True)],
    ids=["runs since before the loss", "has not said since when it runs", "is younger than the store"],
)
async def test_a_new_matchmaker_on_an_empty_store_goes_by_when_the_server_started(
    world: World, monkeypatch: pytest.MonkeyPatch, started_at: float | None, kicked: bool
) -> None:
    """It has read no ages before."""
    world.announce = False
    async with world.parts() as parts:
        fleet = Fleet(world, parts)
        store = Store(fleet, monkeypatch)
        await store.listen()
        await fleet.parts.reader.read(True)
        await fleet.server()
        if started_at is not None:
            await fleet.says(started_at=started_at)
        await store.connects("s")
        assert await store.kicks() == (["s"] if kicked else [])


# Clusters.

STARTED = 1000.0
"""When the server started, and when the buckets were made."""


@pytest.mark.parametrize(
    ("others", "sessions", "replicated", "lost"),
    [
        (STARTED - 9, STARTED - 9, True, []),
        (STARTED - 9, STARTED + 50, True, []),  # led by a node that was replaced
        (STARTED - 9, STARTED + 50, False, ["sessions"]),
        (STARTED + 50, STARTED + 90, True, []),  # by two that were
        (STARTED + 50, STARTED + 50, True, ["deployments", "sessions"]),
        (STARTED + 50, STARTED + 50, False, ["deployments", "sessions"]),
    ],
)
async def test_what_a_new_matchmaker_takes_for_lost(
    fleet: Fleet,
    monkeypatch: pytest.MonkeyPatch,
    others: float,
    sessions: float,
    replicated: bool,
    lost: list[str],
) -> None:
    store = Store(fleet, monkeypatch)
    for field in dataclasses.fields(fleet.world.buckets):
        age = BucketAge(sessions if field.name == "sessions" else others, 1, 0.0, replicated)
        store.reads(getattr(fleet.world.buckets, field.name), lambda age=age: age)
    ages = BucketAges(fleet.parts.bus, fleet.world.buckets, fleet.parts.tasks, lambda: STARTED + 100)
    await ages.read()
    ages.compare([STARTED])
    assert [name for name in ages.lost if name in ("deployments", "sessions")] == sorted(
        lost, key=["sessions", "deployments"].index
    )


async def test_a_bucket_of_a_cluster_is_lost_where_writes_are_missing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others that name a later time than ever before are lost with it, however much is written again."""
    store = Store(fleet, monkeypatch)
    now = {"sessions": BucketAge(100.0, 50, 200.0, True), "fleets": BucketAge(100.0, 5, 200.0, True)}
    for field in dataclasses.fields(fleet.world.buckets):
        name = field.name
        store.reads(
            getattr(fleet.world.buckets, name),
            lambda name=name: now.get(name, BucketAge(100.0, 1, 200.0, True)),
        )
    ages = BucketAges(fleet.parts.bus, fleet.world.buckets, fleet.parts.tasks, lambda: 210.0)
    await ages.read()
    now |= {"sessions": BucketAge(205.0, 50, 206.0, True), "fleets": BucketAge(205.0, 5, 206.0, True)}
    await ages.read()
    assert not ages.lost, "a node that was replaced answers"
    now |= {"sessions": BucketAge(207.0, 2, 208.0, True), "fleets": BucketAge(207.0, 5, 208.0, True)}
    await ages.read()
    assert sorted(ages.lost) == ["fleets", "sessions"]


# The other things that may end for want of a record.


@LOSSES
async def test_what_a_snapshot_read_before_a_loss_is_read_again(
    store: Store, befalls: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NATS goes and comes back while a snapshot is read: it is not taken for the truth."""
    fleet = store.fleet
    listed, calls = fleet.world.fake.list, 0

    async def meanwhile() -> list[Deployment]:
        nonlocal calls
        calls += 1
        if calls == 1:
            await befalls(store, "deployments")
        return await listed()

    monkeypatch.setattr(fleet.world.fake, "list", meanwhile)
    snapshot = await fleet.parts.reader.read(True)
    assert calls == 2
    assert snapshot.before == snapshot.after == {}
    assert "deployments" in snapshot.lost
    assert snapshot.sessions is not None, "whatever the interval says"


def _writer(fleet: Fleet, ages: BucketAges) -> EventWriter:
    async def no_context(_: bytes) -> None: ...

    return EventWriter(fleet.world.bus, ages, fleet.world.buckets, fleet.parts.deployments, no_context)


async def _read_ages(fleet: Fleet) -> BucketAges:
    ages = BucketAges(fleet.parts.bus, fleet.world.buckets, fleet.parts.tasks, time.time)
    await ages.read()
    return ages


LEASE = GameserverLease(
    "one", "boot", "arena", "1", LeaseState.READY, Transports(udp=UdpAddress("127.0.0.1", 7777)), capacity=4
)


@LOSSES
async def test_events_of_a_server_whose_record_is_lost_are_not_dropped(store: Store, befalls: Any) -> None:
    """Its lease is written; its players are handled when its record is there again."""
    fleet = store.fleet
    writer = _writer(fleet, await _read_ages(fleet))
    await befalls(store, "deployments")
    await fleet.world.buckets.gameservers.delete("one")
    fleet.parts.deployments.forget_all()
    with pytest.raises(Unavailable):
        await writer.write_down("one", ServerEvent("boot", 50.0, 1, Players({"s": "7"})))
    await writer.write_down("one", ServerEvent("boot", 50.0, 2, Lease(LEASE, 60)))
    assert await fleet.world.buckets.gameservers.get("one") is not None


@LOSSES
async def test_a_player_whom_an_isolated_server_reports_is_not_kicked(store: Store, befalls: Any) -> None:
    writer = _writer(store.fleet, await _read_ages(store.fleet))
    await befalls(store, "sessions")
    await writer.write_down("one", ServerEvent("boot", 50.0, 1, Players({"s": "7"})))
    assert await store.kicks() == []
    await writer.write_down("one", ServerEvent("boot", 50.0, 2, Players({"s": "7"})))
    assert await store.kicks() == []


@LOSSES
async def test_bans_that_an_httpd_knows_are_written_back(store: Store, befalls: Any) -> None:
    world = store.fleet.world
    await store.fleet.parts.bans.open()
    await befalls(store, "bans")
    ban = Ban(BanKind.USER, "mallory", created_at=2.0)
    await world.bus.publish(world.bus.subjects.known_bans, encode(Bans([ban])))

    async def written() -> bool:
        return "mallory" in str(await world.buckets.bans.list())

    await world.eventually(written, "the ban is written back", timeout=20)


@pytest.mark.parametrize(("lost", "code"), [(True, 503), (False, 409)])
async def test_a_repeated_request_is_not_refused_for_a_lost_server(
    world: World, lost: bool, code: int
) -> None:
    """Its session is there; the record of its server is lost, and may be rebuilt until the request is repeated."""
    async with world.matchmaker(sweep_interval=1000.0) as matchmaker:
        answers = await world.ask()
        ready = await answers.end(20)
        assert isinstance(ready, SessionReady)
        if lost:
            await world.bus.js.delete_stream(world.buckets.deployments.stream)
            await create_buckets(world.bus)
        else:
            await world.buckets.deployments.delete(ready.deployment_id)
        matchmaker.parts.deployments.forget_all()
        again = await (await world.ask(request_id=answers.request_id, again=True)).end(20)
    assert isinstance(again, Failed)
    assert again.code == code
