"""Presence: what others are told, whatever NATS does. The contract holds for all implementations; what they
lead to in KV is told by the contract in tests/isolated."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gameserver.gameserver_players import Recorder, by_udp, by_websocket, token_for
from tests.polling import eventually
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats, find_nats_server
from tipoff_gameserver import Context, GameServer
from tipoff_gameserver.presence import NoPresence, Presence
from tipoff_gameserver.presence.events import EventPresence
from tipoff_gameserver.presence.nats import NatsPresence
from tipoff_shared.errors import Unavailable
from tipoff_shared.event_stream import create_event_stream
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.messages import Transports
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.records import Command, Drain, GameserverLease, LeaseState, encode
from tipoff_shared.server_events import EventKey
from tipoff_shared.settings import NatsSettings


def lease(state: LeaseState = LeaseState.READY) -> GameserverLease:
    return GameserverLease("d1", "b1", "arena", "1", state, Transports(), 4)


def ignore(command: Command) -> None:
    pass


@pytest.fixture(params=["none", "nats", "events"])
async def presence(
    request: pytest.FixtureRequest, settings: NatsSettings, nats: Bus, kv: Buckets
) -> Presence:
    if request.param == "none":
        return NoPresence()
    if request.param == "events":
        await create_event_stream(nats)
        return EventPresence(settings, "d1", "b1", EventKey(bytes(32)), announcement={})
    return NatsPresence(settings, "d1", announcement={})


async def test_contract_announce_says_when_others_know(presence: Presence) -> None:
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    assert presence.connected
    await presence.close(keep_lease=False)


async def test_contract_joins_and_leaves_never_wait_and_may_repeat(presence: Presence) -> None:
    await presence.start(lease, ignore)
    for _ in range(2):
        presence.joined("s1", 2**64 - 1)
        presence.left("s1")
        presence.left("never seen")
    await presence.close(keep_lease=False)
    await presence.close(keep_lease=False)


async def test_contract_an_unknown_client_id_has_no_session(presence: Presence) -> None:
    await presence.start(lease, ignore)
    await presence.announce(5)
    assert await presence.look_up(1) is None
    await presence.close(keep_lease=False)


async def test_contract_it_can_be_closed_without_having_begun(presence: Presence) -> None:
    await presence.close(keep_lease=False)


async def test_it_closes_at_once_whenever_that_is(settings: NatsSettings, kv: Buckets) -> None:
    """Also in the middle of connecting or of the first writes; nothing is left behind."""
    for delay in (0, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01):
        presence = NatsPresence(settings, "d1", announcement={})
        await presence.start(lease, ignore)
        presence.joined("s1", 1)
        await asyncio.sleep(delay)
        async with asyncio.timeout(1.5):
            await presence.close(keep_lease=False)
    assert await kv.gameservers.list() == {}
    assert await kv.active_connections.list() == {}


async def test_a_drain_command_lets_nobody_in_and_ends_with_the_last_player(
    deployment: Context, game: Recorder, kv: Buckets, nats: Bus
) -> None:
    server = GameServer(game, context=deployment)
    running = asyncio.create_task(server.run())
    await eventually(lambda: _has(kv.gameservers, "arena-1"), "the lease")
    async with by_udp(token_for(server, "s1")):
        await nats.publish(nats.subjects.commands("arena-1"), encode(Drain()))
        await nats.publish(nats.subjects.commands("arena-1"), b"nonsense")
        await eventually(lambda: server.state is LeaseState.DRAINING, "it drains")
        await eventually(lambda: _state_is(kv, LeaseState.DRAINING), "the lease says so")
        async with by_websocket(server, token_for(server, "s2")) as late:
            assert "about to end" in str(late.answer)
        assert not running.done()
    async with asyncio.timeout(5):
        await running


async def test_a_key_of_another_server_is_not_deleted(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    """The session moved on: its key was written by its new server before this one noticed that it had left."""
    async with GameServer(game, context=deployment) as server:
        async with by_udp(token_for(server, "s1", client_id=9)):
            await eventually(lambda: _has(kv.active_connections, "s1"), "s1 is active")
            theirs = await kv.active_connections.put("s1", "9")
        await game.saw("leave")
    entry = await kv.active_connections.get("s1")
    assert entry is not None
    assert entry.revision == theirs


async def test_a_server_starts_and_plays_before_nats_is_there(
    deployment: Context, game: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = NatsSettings(servers=("nats://127.0.0.1:1",), insecure=True)
    async with (
        GameServer(game, context=replace(deployment, nats=nowhere)) as server,
        by_udp(token_for(server, "s1")) as player,
    ):
        player.send(b"anyway")
        assert await player.receive() == b"anyway"


class OwnNats:
    """A nats-server that can be killed and started again on the same store, port and password."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.server: EmbeddedNats | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def kill(self) -> None:
        process = self._process or self._present.process
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()

    async def start_again(self) -> None:
        """The configuration file is the one of the first start, but for the port, which is now a certain one."""
        config = self.store / "nats.conf"
        config.write_text(
            config.read_text().replace("listen: 127.0.0.1:-1", f"listen: 127.0.0.1:{self._present.port}")
        )
        self._process = await asyncio.create_subprocess_exec(
            find_nats_server(),
            "-c",
            str(config),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    @property
    def _present(self) -> EmbeddedNats:
        assert self.server is not None
        return self.server

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.kill()


@pytest.fixture
async def fragile_nats(tmp_path: Path) -> AsyncIterator[OwnNats]:
    own = OwnNats(tmp_path / "nats")
    async with embedded_nats(own.store) as server:
        own.server = server
        try:
            yield own
        finally:
            await own.close()


async def test_the_game_goes_on_without_nats_and_the_truth_is_there_when_it_is_back(
    deployment: Context, game: Recorder, fragile_nats: OwnNats
) -> None:
    """NATS is killed; one player leaves, one joins, one stays and plays; NATS comes back: KV says who plays now."""
    assert fragile_nats.server is not None
    settings = fragile_nats.server.settings("away")
    async with connect(settings, name="test") as bus:
        kv = await create_buckets(bus)
        async with (
            GameServer(game, context=replace(deployment, nats=settings), tick_rate=50) as server,
            by_udp(token_for(server, "stays")) as stays,
        ):
            async with by_udp(token_for(server, "leaves")):
                await eventually(lambda: _has(kv.active_connections, "leaves"), "both are active")
                await fragile_nats.kill()
                ticks = server.ticks
            await game.saw("leave", 1)
            async with by_websocket(server, token_for(server, "joins")) as joins:
                stays.send(b"still here")
                assert await stays.receive() == b"still here"
                await eventually(lambda: server.ticks > ticks + 20, "ticks go on")
                await fragile_nats.start_again()
                await eventually(lambda: _sessions_are(kv, {"stays", "joins"}), "the truth is in KV", 15)
                await eventually(lambda: _has(kv.gameservers, "arena-1"), "the lease is there", 15)
                await joins.send(b"x")
                assert await joins.receive() == b"x"


@pytest.mark.parametrize("isolated", [False, True])
async def test_what_cannot_be_withdrawn_is_said_with_the_reason(
    isolated: bool, fragile_nats: OwnNats, caplog: pytest.LogCaptureFixture
) -> None:
    assert fragile_nats.server is not None
    settings = fragile_nats.server.settings("away")
    async with connect(settings, name="test") as bus:
        await create_buckets(bus)
        await create_event_stream(bus)
    presence: Presence = NatsPresence(settings, "d1", announcement={})
    if isolated:
        presence = EventPresence(settings, "d1", "b1", EventKey(bytes(32)), announcement={})
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    await fragile_nats.kill()
    presence.joined("s1", 1)
    async with asyncio.timeout(4):
        await presence.close(keep_lease=False)
    assert "has to expire by itself: NATS is away" in caplog.text


async def test_a_nats_that_forgot_everything_is_told_again(
    deployment: Context, game: Recorder, kv: Buckets, nats: Bus
) -> None:
    """Whatever KV lost or has again after a restart is compared with who is connected."""
    async with GameServer(game, context=deployment) as server:
        async with by_udp(token_for(server, "here")), by_udp(token_for(server, "gone")):
            await eventually(lambda: _sessions_are(kv, {"here", "gone"}), "both are active")
        async with by_udp(token_for(server, "here2")):
            await eventually(lambda: _sessions_are(kv, {"here2"}), "one is active")
            await kv.active_connections.delete("here2")
            server._started.presence._nats_is_back()  # type: ignore[attr-defined]  # what a reconnect calls
            await eventually(lambda: _sessions_are(kv, {"here2"}), "it is active again")


async def _has(store: object, key: str) -> bool:
    return await store.get(key) is not None  # type: ignore[attr-defined]


async def _is_empty(kv: Buckets) -> bool:
    return await kv.active_connections.list() == {}


async def _state_is(kv: Buckets, state: LeaseState) -> bool:
    entry = await kv.gameservers.get("arena-1")
    return entry is not None and entry.value.state is state


async def _sessions_are(kv: Buckets, sessions: set[str]) -> bool:
    try:
        return set(await kv.active_connections.list()) == sessions
    except Unavailable:
        return False


async def test_a_short_visit_leaves_another_servers_key_alone(settings: NatsSettings, kv: Buckets) -> None:
    """The session sits elsewhere by now: its key is not ours to write or delete."""
    presence = NatsPresence(settings, "d1", announcement={})
    presence.joined("s1", 7)
    presence.left("s1")
    await kv.active_connections.put("s1", "7")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    presence.joined("s2", 8)

    async def settled() -> bool:
        return await kv.active_connections.get("s2") is not None

    await eventually(settled, "what was in doubt before s2 is settled")
    assert await kv.active_connections.get("s1") is not None
    await presence.close(keep_lease=False)
