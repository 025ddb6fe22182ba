"""Presence in the trusted profile: which keys a server writes, and which it leaves to other servers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.gameserver.players import Recorder, by_udp, by_websocket, token_for
from tests.isolated.world import IsolatedNats
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer
from tipoff_gameserver.presence.kv import KvPresence
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.messages import Transports
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import Command, GameserverLease, LeaseState


def lease() -> GameserverLease:
    return GameserverLease("arena-1", "b1", "arena", "1", LeaseState.READY, Transports(), 4)


def ignore(command: Command) -> None:
    pass


async def test_a_key_of_another_server_is_not_deleted(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    """The session moved on: its key was written by its new server before this one noticed that it had left."""
    async with GameServer(game, context=deployment) as server:
        async with by_udp(token_for(server, "s1", client_id=9)):
            await eventually(lambda: kv.active_connections.get("s1"), "s1 is active")
            theirs = await kv.active_connections.put("s1", "9")
        await game.saw("leave")
    entry = await kv.active_connections.get("s1")
    assert entry is not None
    assert entry.revision == theirs


async def test_a_short_visit_leaves_another_servers_key_alone(deployment: Context, kv: Buckets) -> None:
    """The session sits elsewhere by now: its key is not ours to write or delete."""
    presence = KvPresence(deployment, "b1")
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


async def test_a_key_that_is_missing_after_a_reconnect_is_written_again(
    deployment: Context, kv: Buckets
) -> None:
    """Whatever KV lost, or has again, is compared with who is connected."""
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    for session_id in ("here", "gone"):
        presence.joined(session_id, 1)
    await eventually(lambda: _sessions_are(kv, {"here", "gone"}), "both are active")
    presence.left("here")
    presence.left("gone")
    presence.joined("here2", 2)
    await eventually(lambda: _sessions_are(kv, {"here2"}), "one is active")
    await kv.active_connections.delete("here2")
    presence.resync()
    await eventually(lambda: _sessions_are(kv, {"here2"}), "it is active again")
    await presence.close(keep_lease=False)


@pytest.mark.parametrize("name", ["", "has spaces", ".dot", "*"])
async def test_a_session_of_bevygaps_whose_name_is_no_key_counts_as_unknown(
    deployment: Context, kv: Buckets, name: str
) -> None:
    """Who played under it could not be reported, and nobody after it."""
    presence = KvPresence(deployment, "b1")
    await presence.start(lease, ignore)
    assert await presence.announce(5)
    await kv.sessions_ly2eg.put("7", name)
    await kv.sessions_ly2eg.put("8", "session-8")
    assert await presence.look_up(7) is None
    assert await presence.look_up(8) == "session-8"
    await presence.close(keep_lease=False)


async def test_the_game_goes_on_without_nats_and_the_truth_is_there_when_it_is_back(
    deployment: Context, game: Recorder, isolated_nats: IsolatedNats
) -> None:
    """NATS is killed; one player leaves, one joins, one stays and plays; NATS comes back: KV says who plays now."""
    settings = isolated_nats.settings("eyes")
    async with connect(settings, name="test") as bus:
        kv = await create_buckets(bus)
        async with (
            GameServer(game, context=replace(deployment, nats=settings), tick_rate=50) as server,
            by_udp(token_for(server, "stays")) as stays,
        ):
            async with by_udp(token_for(server, "leaves")):
                await eventually(lambda: kv.active_connections.get("leaves"), "both are active")
                await isolated_nats.server.kill()
                ticks = server.ticks
            await game.saw("leave", 1)
            async with by_websocket(server, token_for(server, "joins")) as joins:
                stays.send(b"still here")
                assert await stays.receive() == b"still here"
                await eventually(lambda: server.ticks > ticks + 20, "ticks go on")
                await isolated_nats.server.start()
                await eventually(lambda: _sessions_are(kv, {"stays", "joins"}), "the truth is in KV", 15)
                await eventually(lambda: kv.gameservers.get("arena-1"), "the lease is there", 15)
                await joins.send(b"x")
                assert await joins.receive() == b"x"


async def _sessions_are(kv: Buckets, sessions: set[str]) -> bool:
    try:
        return set(await kv.active_connections.list()) == sessions
    except Unavailable:
        return False
