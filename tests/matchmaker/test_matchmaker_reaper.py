"""What players and dead servers leave behind is taken back: once, whatever order the messages come in."""

from __future__ import annotations

import asyncio
import time

import msgspec
import nats.errors
import nats.js.errors
import pytest
from nats.aio.msg import Msg

from tests.matchmaker.world import ARENA, Gameserver, World
from tipoff_matchmaker.presence_reader import CONNECTIONS
from tipoff_shared.kv.changes import Change
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import Kick, SessionState

WARM = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60)


class Clock:
    """Wall clock that a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


async def _tombstones(world: World) -> int:
    """Keys in the bucket, those with a marker too."""
    return len(await world.buckets.active_connections.list_latest())


async def test_a_connection_makes_the_session_active_and_its_end_frees_the_seat(world: World) -> None:
    """And the tombstone that bevygap's bucket would keep for ever is gone."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        began = time.monotonic()
        await server.disconnect(ready)
        await world.eventually(lambda: world.seats_are([]), "the seat is free")
        assert time.monotonic() - began < 2
        assert (await world.session_becomes(ready.session_id, SessionState.GONE)).reason == "the player left"

        async def clean() -> bool:
            return await _tombstones(world) == 0

        await world.eventually(clean, "no tombstone is left")


async def test_a_seat_nobody_claims_is_free_again(world: World) -> None:
    """After the token can lead to no connection any more."""
    clock = Clock()
    async with world.matchmaker(WARM, clock=clock):
        await world.servers_ready(1)
        ready = await world.play()
        await asyncio.sleep(0)
        assert await world.seats() == [ready.session_id]
        clock.ahead = 3600
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert "did not connect" in session.reason
        await world.eventually(lambda: world.seats_are([]), "the seat is free")


async def test_before_a_deadline_closes_a_session_its_connection_is_looked_for(world: World) -> None:
    """The put may have been missed: present means active."""
    clock = Clock()
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
    await world.server_of(ready).connect(ready)
    clock.ahead = 3600
    async with world.matchmaker(WARM, clock=clock):
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        assert await world.seats() == [ready.session_id]


async def test_what_happened_while_no_matchmaker_ran_is_handled_later(world: World) -> None:
    """A player who left meanwhile has left."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
        await world.server_of(ready).connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
    await world.server_of(ready).disconnect(ready)
    async with world.matchmaker(WARM):
        await world.session_becomes(ready.session_id, SessionState.GONE)


async def test_connected_and_left_before_anyone_looked_counts_as_left(world: World) -> None:
    """Put and delete may come as one message."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
    await world.server_of(ready).connect(ready)
    await world.server_of(ready).disconnect(ready)
    async with world.matchmaker(WARM):
        assert (await world.session_becomes(ready.session_id, SessionState.GONE)).reason == "the player left"


@pytest.mark.row(16)
async def test_news_that_a_reader_died_with_is_seen_by_the_sweep(world: World) -> None:
    """Whoever was told that the player left was killed: nobody waits for the news to come again."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
    await world.server_of(ready).connect(ready)
    await world.server_of(ready).disconnect(ready)
    async with world.buckets.active_connections.durable(CONNECTIONS) as reader:
        assert [change.value for change, _ in await reader.fetch()] == [None]
    async with world.matchmaker(WARM, listing_interval=0.2):
        session = await world.session_becomes(ready.session_id, SessionState.GONE, timeout=5)
        assert session.reason == "the player left"


async def test_a_tombstone_left_by_a_dead_reader_is_removed(world: World) -> None:
    """It had handled the news, and died before it removed what bevygap's bucket keeps for ever."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
    await world.buckets.active_connections.put("sgone", "7")
    await world.buckets.active_connections.delete("sgone")
    async with world.buckets.active_connections.durable(CONNECTIONS) as reader:
        for _, ack in await reader.fetch():
            await ack.confirmed()
    async with world.matchmaker(WARM, listing_interval=0.2, orphan_grace=0.5):

        async def clean() -> bool:
            return await _tombstones(world) == 0

        await world.eventually(clean, "no tombstone is left")


@pytest.mark.slow
async def test_visits_of_others_do_not_swallow_what_a_reader_died_with(world: World) -> None:
    """nats-server tells it again, however many have come, left and been forgotten meanwhile."""
    async with world.matchmaker(WARM, listing_interval=60):
        await world.servers_ready(1)
        await world.buckets.active_connections.put("sdead", "7")

        async def told() -> bool:
            info = await world.bus.js.consumer_info(world.buckets.active_connections.stream, CONNECTIONS)
            return info.num_ack_pending == 0 and info.num_pending == 0

        await world.eventually(told, "the put is handled")
    await world.buckets.active_connections.delete("sdead")
    async with world.buckets.active_connections.durable(CONNECTIONS) as reader:
        assert [change.key for change, _ in await reader.fetch()] == ["sdead"]
    async with world.matchmaker(WARM, listing_interval=60):
        for _ in range(4):
            ready = await world.play()
            await world.server_of(ready).connect(ready)
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
            await world.server_of(ready).disconnect(ready)
            await world.session_becomes(ready.session_id, SessionState.GONE)

        async def clean() -> bool:
            return await _tombstones(world) == 0

        await world.eventually(clean, "it came again, and was handled", timeout=20)


async def test_doubled_events_change_nothing(world: World) -> None:
    """Connect twice, leave twice, and once more for a session that never was."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
        server = world.server_of(ready)
        await world.buckets.active_connections.delete("snever")
        await server.connect(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await server.disconnect(ready)
        await server.disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.nothing_is_left(servers=1)


async def _kicked(server: Gameserver) -> Kick:
    async with asyncio.timeout(5):
        command = await server.commands.get()
    assert isinstance(command, Kick)
    return command


async def test_a_connection_of_an_ended_session_is_kicked(world: World) -> None:
    """Its server is told; when the server has taken it back, nothing is left."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await server.disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await server.connect(ready)
        assert (await _kicked(server)).session_id == ready.session_id
        await server.disconnect(ready)
        await world.nothing_is_left(servers=1)


async def test_a_connection_of_an_unknown_session_is_kicked_everywhere(world: World) -> None:
    """Nobody knows where it is; and an entry that no server takes back is removed after the grace."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        stranger = SessionReady("", "127.0.0.1", 1, session_id="sunknown", client_id="7")
        server = next(iter(world.servers.values()))
        await server.connect(stranger)
        assert (await _kicked(server)).session_id == "sunknown"
        await world.nothing_is_left(servers=1)


async def test_the_delete_queue_finishes_what_a_crash_left(world: World) -> None:
    """A session that is `closing` and has a message there is given back, also if the closer died."""
    async with world.matchmaker(WARM, listing_interval=60):
        await world.servers_ready(1)
        ready = await world.play()
        entry = await world.buckets.sessions.get(ready.session_id)
        assert entry is not None
        closing = msgspec.structs.replace(entry.value, state=SessionState.CLOSING, reason="a test")
        await world.buckets.sessions.update(ready.session_id, closing, entry.revision)
        await world.bus.js.publish(world.bus.subjects.delete_queue("x"), ready.session_id.encode())
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.eventually(lambda: world.seats_are([]), "the seat is free")


async def test_the_delete_queue_ends_no_session_that_lives(world: World) -> None:
    """A message is a hint; the record decides."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
        for body in (ready.session_id.encode(), b"nonsense", b"\xff" * 100, b"a b"):
            await world.bus.js.publish(world.bus.subjects.delete_queue("x"), body)

        async def read() -> bool:
            info = await world.bus.js.stream_info(world.bus.subjects.delete_stream)
            return info.state.messages == 0

        await world.eventually(read, "the queue is empty")
        assert (await world.session_becomes(ready.session_id, SessionState.READY)).reason == ""


async def test_a_player_who_comes_at_the_deadline_is_not_thrown_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the deadline is looked at, the connection is written and another reader makes the session active."""
    async with world.matchmaker(WARM, listing_interval=60) as matchmaker:
        await world.servers_ready(1)
        ready = await world.play()
        connections = matchmaker.parts.buckets.active_connections
        latest = connections.latest

        async def just_before(key: str) -> Change[str] | None:
            found = await latest(key)
            monkeypatch.setattr(connections, "latest", latest)
            await world.server_of(ready).connect(ready)
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
            return found

        monkeypatch.setattr(connections, "latest", just_before)
        await matchmaker.parts.deadlines.check(ready.session_id)
        assert (await world.session_becomes(ready.session_id, SessionState.ACTIVE)).reason == ""
        assert await world.seats() == [ready.session_id]


async def test_a_connection_is_kicked_also_where_the_end_was_not_heard_of(world: World) -> None:
    """Another matchmaker has ended the session that this one remembers as active."""
    async with world.matchmaker(WARM, listing_interval=60):
        await world.servers_ready(1)
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        entry = await world.buckets.sessions.get(ready.session_id)
        assert entry is not None
        over = msgspec.structs.replace(entry.value, state=SessionState.GONE, reason="a test")
        await world.buckets.sessions.update(ready.session_id, over, entry.revision)
        await server.connect(ready)
        assert (await _kicked(server)).session_id == ready.session_id


async def test_a_key_that_cannot_be_one_does_not_come_for_ever(world: World) -> None:
    """Anything may be written into a bucket that servers write: it is read once."""
    async with world.matchmaker(WARM, listing_interval=60):
        await world.servers_ready(1)
        connections = world.buckets.active_connections
        await world.bus.js.publish(f"$KV.{connections.bucket}.a:b", b"7")

        async def read() -> bool:
            info = await world.bus.js.consumer_info(connections.stream, CONNECTIONS)
            return info.num_pending == 0 and info.num_ack_pending == 0

        await world.eventually(read, "it is acknowledged", timeout=3)


async def test_an_acknowledgement_that_cannot_be_sent_ends_no_reading(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NATS is away, and what waits to be sent to it is full: the reading begins again."""
    async with world.matchmaker(WARM, listing_interval=60) as matchmaker:
        await world.servers_ready(1)
        ready = await world.play()
        connections = f"$KV.{world.buckets.active_connections.bucket}."
        ack = Msg.ack
        refused: list[Msg] = []

        async def full(msg: Msg) -> None:
            if msg.subject.startswith(connections) and len(refused) < 2:
                refused.append(msg)
                raise nats.errors.OutboundBufferLimitError
            await ack(msg)

        monkeypatch.setattr(Msg, "ack", full)
        await world.server_of(ready).connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await world.server_of(ready).disconnect(ready)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        assert refused
        assert not matchmaker.failed.is_set()


async def test_what_cannot_be_given_back_does_not_end_the_delete_queue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message that leads to a mistake is one message; the next ones are read."""
    async with world.matchmaker(WARM, listing_interval=60) as matchmaker:
        await world.servers_ready(1)
        ready = await world.play()
        release = matchmaker.parts.router.of(ARENA.key).release
        raised = asyncio.Event()

        async def mistaken(allocation_id: str, member: str, *, deployment_id: str) -> None:
            monkeypatch.setattr(matchmaker.parts.router.of(ARENA.key), "release", release)
            raised.set()
            raise ValueError("a test")

        monkeypatch.setattr(matchmaker.parts.router.of(ARENA.key), "release", mistaken)
        entry = await world.buckets.sessions.get(ready.session_id)
        assert entry is not None
        closing = msgspec.structs.replace(entry.value, state=SessionState.CLOSING, reason="a test")
        await world.buckets.sessions.update(ready.session_id, closing, entry.revision)
        for _ in range(2):
            await world.bus.js.publish(world.bus.subjects.delete_queue("x"), ready.session_id.encode())
            await asyncio.wait_for(raised.wait(), 5)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        assert not matchmaker.failed.is_set()


async def test_no_consumer_is_left_over(world: World) -> None:
    """Matchmakers come and go; beside the durable ones nothing stays on the server."""
    for _ in range(2):
        async with world.matchmaker(WARM):
            await world.servers_ready(1)
            await world.play()
    names: list[str] = []
    for stream in (world.buckets.active_connections.stream, world.buckets.gameservers.stream):
        names += [info.name for info in await world.bus.js.consumers_info(stream)]
    assert names == ["matchmaker-connections", "matchmaker-leases"]
    for stream in (world.buckets.sessions.stream, world.buckets.deployments.stream):
        with pytest.raises(nats.js.errors.NotFoundError):
            await world.bus.js.consumer_info(stream, "matchmaker-connections")
        assert await world.bus.js.consumers_info(stream) == []
