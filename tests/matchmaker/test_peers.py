"""Which matchmakers are alive, by their heartbeats: real ones over NATS, with a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from tests.polling import eventually
from tipoff_matchmaker import peers as peers_module
from tipoff_matchmaker.peers import Peers
from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks

SILENT_AFTER = 9.0
KNOWS = b"own-keys"


class World:
    """Time passes when a test says so, or while somebody waits to see whether a matchmaker is silent."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.now = 1000.0
        self.pauses: list[float] = []
        self.beats = asyncio.Event()
        """Set: the next heartbeats are sent."""
        self.reconnected: list[Callable[[], None]] = []
        self._beats = 0

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if seconds == SILENT_AFTER / 3:
            await self.beats.wait()
            self.beats.clear()
            return
        self.now += seconds
        await asyncio.sleep(0)

    @asynccontextmanager
    async def listening(self, says: bytes = b"") -> AsyncIterator[Peers]:
        """One that listens; its own heartbeat has come back."""
        peers = Peers(self.bus, "me", silent_after=SILENT_AFTER)
        failures: list[BaseException] = []
        own = asyncio.Event()

        async def heard(_: object) -> None:
            own.set()

        subscription = await self.bus.subscribe(self.bus.subjects.alive("me"), heard)
        async with Tasks("peers", failures.append) as tasks, peers.listening(tasks, lambda: says):
            async with asyncio.timeout(20):
                await own.wait()
            yield peers
        await subscription.unsubscribe()
        assert failures == []

    async def beat(self, peers: Peers, name: str, data: bytes = KNOWS) -> None:
        """A heartbeat of another one arrives, and all that were sent before it."""
        await self.bus.publish(self.bus.subjects.alive(name), data)
        self._beats += 1
        last = b"%d" % self._beats
        await self.bus.publish(self.bus.subjects.alive("last"), KNOWS + last)
        await eventually(lambda: last in peers.said(), "it has arrived")

    async def silence(self, peers: Peers, name: str) -> bool:
        async with asyncio.timeout(20):
            return await peers.falls_silent(name)


@pytest.fixture
def world(nats: Bus, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(nats)
    monkeypatch.setattr(peers_module, "time", SimpleNamespace(monotonic=lambda: world.now))
    monkeypatch.setattr(peers_module, "asyncio", SimpleNamespace(sleep=world.sleep))
    monkeypatch.setattr(nats, "on_reconnect", world.reconnected.append)
    return world


async def test_one_is_alive_while_it_is_heard(world: World) -> None:
    async with world.listening() as peers:
        assert not peers.is_alive("")
        assert peers.is_alive("unheard"), "we have not listened for long enough"
        world.now += SILENT_AFTER - 0.1
        assert peers.is_alive("unheard")
        await world.beat(peers, "other")
        world.now += 0.1
        assert not peers.is_alive("unheard")
        assert peers.is_alive("other")
        world.now += SILENT_AFTER - 0.2
        assert peers.is_alive("other")
        world.now += 0.1
        assert not peers.is_alive("other")


async def test_we_begin_to_listen_when_we_listen(world: World) -> None:
    """Not when the part is made."""
    peers = Peers(world.bus, "me", silent_after=SILENT_AFTER)
    world.now += SILENT_AFTER
    assert not peers.is_alive("other")
    async with Tasks("peers") as tasks, peers.listening(tasks, lambda: b""):
        assert peers.is_alive("other")


async def test_who_hears_nobody_else_is_alone(world: World) -> None:
    async with world.listening() as peers:
        await eventually(lambda: not peers.said(), "nobody says anything")
        assert peers.alone
        await world.beat(peers, "other")
        assert not peers.alone
        world.now += SILENT_AFTER
        assert peers.alone


async def test_what_the_others_say_is_told_while_they_are_alive(world: World) -> None:
    """Not what we say ourselves, and nothing of those that say nothing."""
    async with world.listening(b"mine") as peers:
        await world.beat(peers, "one", KNOWS + b"ill")
        await world.beat(peers, "two")
        assert b"ill" in peers.said()
        assert not {b"mine", b""} & set(peers.said())
        await world.beat(peers, "one", KNOWS + b"worse")
        assert b"worse" in peers.said()
        assert b"ill" not in peers.said()
        await world.beat(peers, "one")
        assert b"worse" not in peers.said()
        await world.beat(peers, "one", KNOWS + b"ill")
        world.now += SILENT_AFTER
        assert peers.said() == []


async def test_a_heartbeat_is_read_to_a_bound(world: World) -> None:
    async with world.listening() as peers:
        await world.bus.publish(world.bus.subjects.alive("long"), KNOWS + 30_000 * b"x")
        said = await eventually(peers.said, "it has arrived")
        assert [len(one) for one in said] == [20_000 - len(KNOWS)]


async def test_one_of_an_earlier_release_knows_no_keys_of_servers(world: World) -> None:
    """As long as it is alive, and until it is updated."""
    async with world.listening() as peers:
        assert peers.know_own_keys
        await world.beat(peers, "old", b"")
        assert not peers.know_own_keys
        await world.beat(peers, "new")
        assert not peers.know_own_keys
        await world.beat(peers, "old")
        assert peers.know_own_keys
        await world.beat(peers, "old", b"")
        world.now += SILENT_AFTER
        assert peers.know_own_keys


async def test_among_a_thousand_names_those_alive_are_kept(world: World) -> None:
    async with world.listening() as peers:
        world.now += SILENT_AFTER
        await world.beat(peers, "old", b"")
        await world.beat(peers, "ill", KNOWS + b"ill")
        for number in range(1001):
            await world.bus.publish(world.bus.subjects.alive(f"n{number}"), KNOWS)
        await world.beat(peers, "end")
        assert peers.is_alive("ill")
        assert b"ill" in peers.said()
        assert not peers.know_own_keys
        await world.beat(peers, "old")
        assert peers.know_own_keys, "the thousand others are no earlier release's"


async def test_after_a_reconnect_everybody_may_be_alive(world: World) -> None:
    async with world.listening() as peers:
        await world.beat(peers, "old", b"")
        await world.beat(peers, "ill", KNOWS + b"ill")
        world.now += SILENT_AFTER
        assert not peers.is_alive("ill")
        for told in world.reconnected:
            told()
        assert peers.is_alive("ill")
        assert peers.is_alive("unheard")
        assert peers.said() == []
        assert peers.know_own_keys
        assert peers.alone


# Silence.


async def test_who_has_no_name_is_silent(world: World) -> None:
    async with world.listening() as peers:
        assert await world.silence(peers, "")


async def test_a_silent_one_is_known_at_once(world: World) -> None:
    async with world.listening() as peers:
        await world.beat(peers, "other")
        world.now += SILENT_AFTER
        assert await world.silence(peers, "other")
        assert world.pauses == [SILENT_AFTER / 3]


async def test_one_that_falls_silent_is_waited_for(world: World) -> None:
    """Also one that was never heard."""
    async with world.listening() as peers:
        await world.beat(peers, "other")
        world.now += 2
        assert await world.silence(peers, "other")
        assert world.pauses[1:] == [SILENT_AFTER - 2]
        assert await world.silence(peers, "unheard")


async def test_one_that_is_heard_meanwhile_is_not_silent(world: World) -> None:
    async with world.listening() as peers:
        await world.beat(peers, "other")
        world.now += 2
        silence = asyncio.create_task(world.silence(peers, "other"))
        gate = asyncio.Event()
        wait = world.sleep

        async def sleep(seconds: float) -> None:
            await gate.wait()
            await wait(seconds)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(peers_module, "asyncio", SimpleNamespace(sleep=sleep))
            await asyncio.sleep(0)
            world.now += 1
            await world.beat(peers, "other")
            gate.set()
            assert not await silence


# Heartbeats.


async def test_heartbeats_are_sent_three_times_in_a_period_of_silence(world: World) -> None:
    says = [b"first", b"second"]
    heard: asyncio.Queue[bytes] = asyncio.Queue()
    other = Peers(world.bus, "other", silent_after=SILENT_AFTER)

    async def arrived(msg: object) -> None:
        heard.put_nowait(msg.data)  # type: ignore[attr-defined] # nats-py's message

    subscription = await world.bus.subscribe(world.bus.subjects.alive("other"), arrived)
    async with asyncio.timeout(20), Tasks("peers") as tasks, other.listening(tasks, lambda: says.pop(0)):
        assert await heard.get() == KNOWS + b"first"
        assert world.pauses == [SILENT_AFTER / 3]
        world.beats.set()
        assert await heard.get() == KNOWS + b"second"
    await subscription.unsubscribe()


async def test_heartbeats_go_on_when_nats_was_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, fails = world.bus.publish, [True]

    async def away(*args: object, **options: object) -> None:
        if fails.pop():
            fails.append(False)
            world.beats.set()
            raise Unavailable("NATS is away")
        fails.append(False)
        await publish(*args, **options)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr(world.bus, "publish", away)
    async with world.listening():
        pass


async def test_who_stops_listening_sends_and_hears_nothing(world: World) -> None:
    async with world.listening() as peers:
        pass
    world.beats.set()
    await world.bus.publish(world.bus.subjects.alive("other"), KNOWS + b"ill")
    async with world.listening() as others:
        await world.beat(others, "more")
    assert peers.said() == []
