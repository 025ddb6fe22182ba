"""What becomes of sessions, part by part: the store, deadlines, the release of what they held, kicks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from nats.aio.msg import Msg

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World
from tests.polling import eventually
from tipoff_matchmaker.allocators.router import Router
from tipoff_matchmaker.reconciler.actions import ReleaseSession
from tipoff_matchmaker.sessions.deadlines import Deadlines
from tipoff_matchmaker.sessions.state_machine import Connected, Effect, Ended, Left, Released, SeatFound
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import Internal, Unavailable
from tipoff_shared.kv.bucket import Full, LostRace
from tipoff_shared.records import DeploymentState, Kick, SessionRecord, SessionState, decode_command

REQUESTED, READY, ACTIVE, CLOSING, GONE = (
    SessionState.REQUESTED,
    SessionState.READY,
    SessionState.ACTIVE,
    SessionState.CLOSING,
    SessionState.GONE,
)


def session(id: str = "s", state: SessionState = REQUESTED, **changes: object) -> SessionRecord:
    record = SessionRecord(id, state, "arena", "1", "7", "me", created_at=1.0, deadline=9e9)
    return msgspec.structs.replace(record, **changes)


# The store.


class Sessions:
    """A store with handlers that write down what they hear."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = SessionStore(world.buckets.sessions, Settings(gone_ttl=60), time.time)
        self.heard: list[tuple[str, str, SessionState | None]] = []
        self.written: list[SessionState] = []
        self.store.subscribe(lambda record: self.written.append(record.state))
        self.reads = 0
        for operation in ("get", "latest", "newer"):
            self._count(operation)

    def _count(self, operation: str) -> None:
        read = getattr(self.world.buckets.sessions, operation)

        async def counted(*args: object) -> object:
            self.reads += 1
            return await read(*args)

        setattr(self.world.buckets.sessions, operation, counted)

    def handler(self, effect: Effect) -> Callable[[str, SessionRecord | None], None]:
        return lambda id, record: self.heard.append(
            (effect.value, id, None if record is None else record.state)
        )


@pytest.fixture
def sessions(world: World) -> Sessions:
    sessions = Sessions(world)
    sessions.store.handle({effect: sessions.handler(effect) for effect in Effect})
    return sessions


async def test_each_effect_has_one_handler(world: World) -> None:
    sessions = Sessions(world)
    handlers = {effect: sessions.handler(effect) for effect in Effect}
    with pytest.raises(Internal, match="release"):
        sessions.store.handle({effect: handlers[effect] for effect in Effect if effect is not Effect.RELEASE})
    sessions.store.handle(handlers)
    with pytest.raises(Internal, match="already"):
        sessions.store.handle(handlers)


async def test_the_usual_steps_need_no_reading(sessions: Sessions) -> None:
    await sessions.store.create(session())
    found = await sessions.store.apply("s", SeatFound("one", "boot", 9e9))
    assert found.changed
    assert found.record is not None
    assert found.record.state is READY
    await sessions.store.apply("s", Connected())
    await sessions.store.apply("s", Ended("enough"))
    await sessions.store.apply("s", Released())
    assert sessions.reads == 0
    assert sessions.written == [REQUESTED, READY, ACTIVE, CLOSING, GONE]
    assert sessions.heard == [("claimed", "s", ACTIVE), ("release", "s", CLOSING)]


async def test_a_session_that_others_changed_is_read_before_anything_is_said_of_it(
    sessions: Sessions, world: World
) -> None:
    """What is remembered would ask for a kick of a living player."""
    await sessions.store.create(session())
    other = SessionStore(world.buckets.sessions, Settings(), time.time)
    other.handle({effect: lambda *_: None for effect in Effect})
    await other.apply("s", SeatFound("one", "boot", 9e9))
    outcome = await sessions.store.apply("s", Connected())
    assert outcome.changed
    assert sessions.heard == [("claimed", "s", ACTIVE)]


async def test_an_event_that_changes_nothing_returns_what_there_is(sessions: Sessions) -> None:
    await sessions.store.create(session())
    outcome = await sessions.store.apply("s", Connected())
    assert (outcome.changed, outcome.record) == (False, session())
    outcome = await sessions.store.apply("unknown", Connected())
    assert (outcome.changed, outcome.record) == (False, None)
    assert sessions.heard == [("kick", "unknown", None)]


async def test_a_session_is_created_once(sessions: Sessions) -> None:
    await sessions.store.create(session())
    with pytest.raises(LostRace):
        await sessions.store.create(session())
    assert sessions.written == [REQUESTED]


async def test_ended_sessions_are_forgotten_after_their_time(sessions: Sessions, world: World) -> None:
    store = SessionStore(world.buckets.sessions, Settings(gone_ttl=1), time.time)
    store.handle({effect: lambda *_: None for effect in Effect})
    await store.create(session())
    await store.apply("s", Ended("enough"))
    await store.apply("s", Released())

    async def gone() -> bool:
        return await world.buckets.sessions.latest("s") is None or await world.session("s") is None

    await world.eventually(gone, "its record has expired", timeout=4)


@pytest.mark.parametrize("operation", ["create", "apply"])
async def test_after_an_unknown_outcome_the_store_reads(
    sessions: Sessions, world: World, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """The write that seemed to fail is there."""
    bucket = world.buckets.sessions
    create, change = bucket.create, bucket.change

    async def created(*args: object, **options: object) -> int:
        await create(*args, **options)  # type: ignore[arg-type]
        raise Unavailable("no answer")

    async def changed(*args: object, **options: object) -> object:
        await change(*args, **options)  # type: ignore[arg-type]
        raise Unavailable("no answer")

    if operation == "create":
        monkeypatch.setattr(bucket, "create", created)
        with pytest.raises(Unavailable):
            await sessions.store.create(session())
    else:
        await sessions.store.create(session())
        monkeypatch.setattr(bucket, "change", changed)
        with pytest.raises(Unavailable):
            await sessions.store.apply("s", SeatFound("one", "boot", 9e9))
    monkeypatch.undo()
    before = sessions.reads
    outcome = await sessions.store.apply("s", Ended("enough"))
    assert outcome.changed
    assert sessions.reads == before + 1


async def test_what_a_listing_says_is_published_and_what_ended_is_not_remembered(
    sessions: Sessions, world: World
) -> None:
    for id in ("open", "ended", "closing"):
        await sessions.store.create(session(id))
    await world.buckets.sessions.put("closing", session("closing", CLOSING))
    await world.buckets.sessions.delete("ended")
    sessions.written.clear()
    sessions.store.listed(await world.buckets.sessions.list())
    assert sorted(sessions.written) == [CLOSING, REQUESTED]
    for id, reads in (("open", 0), ("closing", 1), ("ended", 1)):
        before = sessions.reads
        await sessions.store.apply(id, Ended("enough"))
        assert sessions.reads - before == reads, id
    sessions.store.forget_all()
    before = sessions.reads
    await sessions.store.apply("open", Ended("enough"))
    assert sessions.reads == before + 1


@pytest.mark.parametrize("ends", [True, False])
async def test_a_full_bucket_keeps_no_session_from_ending(
    sessions: Sessions, world: World, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """Its key is removed where the longer record of its end does not fit. A session that goes on needs its record."""

    def full(*_: object, **__: object) -> object:
        raise Full("the bucket is full")

    await sessions.store.create(session())
    monkeypatch.setattr(world.buckets.sessions, "update", full)
    if ends:
        await sessions.store.apply("s", Ended("enough"))
        assert [effect for effect, _, _ in sessions.heard] == ["release"]
    else:
        with pytest.raises(Full):
            await sessions.store.apply("s", SeatFound("one", "boot", 9e9))
    assert (await world.session("s") is None) is ends


async def test_a_read_is_remembered_while_the_session_lives(sessions: Sessions, world: World) -> None:
    await world.buckets.sessions.put("s", session())
    assert await sessions.store.read("s") == session()
    assert await sessions.store.read("unknown") is None
    before = sessions.reads
    await sessions.store.apply("s", Ended("enough"))
    await sessions.store.apply("s", Released())
    assert sessions.reads == before
    await sessions.store.apply("s", Connected())
    assert sessions.reads == before + 1, "of what is gone nothing is remembered"


# Deadlines.


class Times:
    """Deadlines on a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.due: list[str] = []
        self.fail = 0
        self.deadlines = Deadlines(lambda: self.now, self._due)

    async def _due(self, key: str) -> None:
        if self.fail:
            self.fail -= 1
            raise Unavailable("NATS is away")
        self.due.append(key)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.deadlines.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait((task,))

    async def until(self, *due: str) -> None:
        await eventually(lambda: self.due == list(due), f"due: {due}")


async def test_what_is_due_is_called_in_order_and_once() -> None:
    times = Times()
    for key, at in (("late", 100.02), ("past", 90.0), ("early", 99.0), ("never", 1e9)):
        times.deadlines.add(key, at)
    assert times.deadlines.next() == 90.0
    async with times.running():
        await times.until("past", "early")
        times.now = 100.02
        await times.until("past", "early", "late")
    assert len(times.deadlines) == 1
    assert times.deadlines.next() == 1e9


async def test_an_earlier_deadline_is_not_missed_while_a_later_one_is_waited_for() -> None:
    times = Times()
    times.deadlines.add("never", 1e9)
    async with times.running():
        await asyncio.sleep(0)
        times.deadlines.add("now", 100.0)
        await times.until("now")
        times.deadlines.add("first", 99.0)
        await times.until("now", "first")


async def test_a_later_time_replaces_the_one_before_and_a_dropped_one_is_forgotten() -> None:
    times = Times()
    times.deadlines.add("moved", 50.0)
    times.deadlines.add("moved", 1e9)
    times.deadlines.add("dropped", 51.0)
    times.deadlines.drop("dropped")
    times.deadlines.drop("unknown")
    times.deadlines.add("now", 100.0)
    times.deadlines.add("now", 100.0)
    async with times.running():
        await times.until("now")
    assert times.deadlines.next() == 1e9
    assert len(times.deadlines) == 1
    times.deadlines.drop("moved")
    assert times.deadlines.next() is None


async def test_many_dropped_ones_take_no_memory() -> None:
    times = Times()
    for number in range(300):
        times.deadlines.add(f"{number}", 200.0 + number)
    for number in range(299):
        times.deadlines.drop(f"{number}")
    assert times.deadlines.next() == 499.0
    assert len(times.deadlines) == 1


async def test_what_failed_is_called_again_a_second_later() -> None:
    times = Times()
    times.fail = 1
    times.deadlines.add("s", 99.0)
    async with times.running():
        await eventually(lambda: times.deadlines.next() == 101.0, "it is tried later")
        assert times.due == []
        times.now = 101.0
        times.deadlines.add("wake", 0.0)
        await times.until("wake", "s")


@pytest.mark.parametrize(
    ("state", "connection", "late", "after"),
    [
        (READY, "none", False, READY),
        (READY, "none", True, CLOSING),
        (READY, "there", True, ACTIVE),
        (READY, "there", False, ACTIVE),
        (READY, "left", False, CLOSING),
        (ACTIVE, "there", True, ACTIVE),
        (ACTIVE, "none", False, CLOSING),
        (ACTIVE, "left", False, CLOSING),
        (REQUESTED, "none", False, REQUESTED),
        (REQUESTED, "none", True, CLOSING),
    ],
)
async def test_a_check_looks_at_the_connection_before_it_closes(
    fleet: Fleet,
    state: SessionState,
    connection: str,
    late: bool,
    after: SessionState,
) -> None:
    await fleet.world.buckets.sessions.put("s", session(state=state, deadline=1.0 if late else 9e9))
    if connection != "none":
        await fleet.world.buckets.active_connections.put("s", "7")
    if connection == "left":
        await fleet.world.buckets.active_connections.delete("s")
    await fleet.parts.deadlines.check("s")
    await fleet.parts.deadlines.check("unknown")
    record = await fleet.world.session("s")
    assert record is not None
    assert record.state in ((CLOSING, GONE) if after is CLOSING else (after,))


@pytest.mark.parametrize("settled", [True, False])
async def test_deadlines_follow_the_records_and_wait_until_servers_are_heard(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    checked: list[str] = []

    async def check(id: str) -> None:
        checked.append(id)

    monkeypatch.setattr(type(fleet.parts.hearing), "settled", property(lambda _: settled))
    monkeypatch.setattr(fleet.parts.deadlines, "check", check)
    now = time.time()
    for id, state, deadline in (
        ("requested", REQUESTED, now - 2),
        ("ready", READY, now - 1),
        ("active", ACTIVE, now - 1),
        ("closing", CLOSING, now - 1),
        ("later", READY, now + 3600),
    ):
        await fleet.parts.sessions.create(session(id, state, deadline=deadline))
    await fleet.parts.sessions.create(session("claimed", READY, deadline=now + 0.05))
    await fleet.parts.sessions.apply("claimed", Connected())
    await fleet.parts.sessions.create(session("last", READY, deadline=now + 0.1))
    task = asyncio.create_task(fleet.parts.deadlines.run())
    if settled:
        await fleet.world.eventually(lambda: checked == ["requested", "ready", "last"], "all are checked")
    else:
        await asyncio.sleep(0.2)  # longer than the last deadline
        assert checked == []
    task.cancel()
    await asyncio.wait((task,))


# Release.


async def test_a_session_gives_back_its_seat_once_and_is_gone(fleet: Fleet) -> None:
    hints: list[bytes] = []

    async def heard(msg: Msg) -> None:
        hints.append(msg.data)

    await fleet.world.bus.nc.subscribe(fleet.world.bus.subjects.delete_queue("s"), cb=heard)
    await fleet.server(seats={"s": 9e9, "t": 9e9})
    closing = await fleet.session("s", CLOSING)
    await _with_releaser(fleet, closing)
    assert (await fleet.written()).seats == {"t": 9e9}
    record = await fleet.world.session("s")
    assert record is not None
    assert record.state is GONE
    await fleet.world.eventually(lambda: hints == [b"s"], "others know, should we die half-way")


async def _with_releaser(fleet: Fleet, record: SessionRecord) -> None:
    await fleet.parts.executor.execute(ReleaseSession(record))
    await fleet.settled()


@pytest.mark.parametrize("bevygap", [True, False])
async def test_bevygaps_entry_ends_when_the_player_connects_or_the_session_ends(
    world: World, bevygap: bool
) -> None:
    world.announce = False
    async with world.parts(msgspec.structs.replace(ARENA, bevygap=bevygap)) as parts:
        fleet = Fleet(world, parts)
        await fleet.server(seats={"s": 9e9, "t": 9e9})
        for id in ("s", "t"):
            await world.buckets.unclaimed_sessions.put(id, "7")
        await fleet.session("s", READY)
        closing = await fleet.session("t", CLOSING)
        await parts.sessions.apply("s", Connected())
        await _with_releaser(fleet, closing)
        for id in ("s", "t"):
            there = await world.buckets.unclaimed_sessions.get(id) is not None
            assert there is not bevygap, id


async def test_a_release_that_failed_is_repeated_later(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = True
    release = Router.release_seat

    async def away(self: Router, record: SessionRecord) -> None:
        if failing:
            raise Unavailable("NATS is away")
        await release(self, record)

    monkeypatch.setattr(Router, "release_seat", away)
    await fleet.server(seats={"s": 9e9})
    closing = await fleet.session("s", CLOSING)
    await _with_releaser(fleet, closing)
    record = await fleet.world.session("s")
    assert record is not None
    assert record.state is CLOSING
    failing = False
    await _with_releaser(fleet, closing)
    record = await fleet.world.session("s")
    assert record is not None
    assert record.state is GONE


# Kicks.


class Commands:
    """What game servers and waiting matchmakers hear."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []

    async def listen(self, fleet: Fleet, *servers: str) -> None:
        subjects = fleet.world.bus.subjects
        for name, subject in [(id, subjects.commands(id)) for id in servers] + [("waiting", subjects.over)]:
            await fleet.world.bus.nc.subscribe(subject, cb=self._handler(name))
        await fleet.world.bus.flush()

    def _handler(self, name: str) -> Callable[[Msg], Awaitable[None]]:
        async def heard(msg: Msg) -> None:
            kick = decode_command(msg.data)
            assert isinstance(kick, Kick)
            self.heard.append((name, kick.session_id, kick.reason))

        return heard


async def test_a_kick_goes_to_the_server_that_has_the_session_or_to_all_that_may(fleet: Fleet) -> None:
    commands = Commands()
    await commands.listen(fleet, "one", "two", "starting")
    await fleet.server()
    await fleet.server(DeploymentState.DRAINING, id="two")
    await fleet.server(DeploymentState.STARTING, id="starting", deadline=9e9)
    await fleet.session("s", GONE)
    await fleet.parts.sessions.apply("s", Connected())
    await fleet.settled()
    await fleet.world.eventually(
        lambda: commands.heard == [("one", "s", "the session is over")], "it is told"
    )
    commands.heard.clear()
    await fleet.parts.sessions.apply("unknown", Connected())
    await fleet.settled()
    await fleet.world.eventually(lambda: len(commands.heard) >= 2, "they are told")
    assert sorted(name for name, _, _ in commands.heard) == ["one", "two"]


async def test_a_session_without_a_server_kicks_at_all(fleet: Fleet) -> None:
    commands = Commands()
    await commands.listen(fleet, "one")
    await fleet.server()
    await fleet.session("s", GONE, deployment_id="")
    await fleet.parts.sessions.apply("s", Connected())
    await fleet.settled()
    await fleet.world.eventually(lambda: [name for name, _, _ in commands.heard] == ["one"], "it is told")


async def test_left_twice_changes_nothing(fleet: Fleet) -> None:
    await fleet.server(seats={"s": 9e9})
    await fleet.session("s", ACTIVE)
    assert (await fleet.parts.sessions.apply("s", Left())).changed
    await fleet.settled()
    assert not (await fleet.parts.sessions.apply("s", Left())).changed
