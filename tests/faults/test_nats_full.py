"""A bucket is full: what is new is refused with a reason, and what ends still ends."""

from __future__ import annotations

import msgspec
import pytest

from tests.faults.real_servers import active, echoes, playing, real_world
from tests.matchmaker.world import ARENA, World, failed
from tipoff_shared.kv.bucket import Bucket, Full
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.records import SessionRecord, SessionState
from tipoff_shared.settings import NatsSettings

WARM = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60)
RECORD = SessionRecord("s", SessionState.REQUESTED, "arena", "1", "1", "me", created_at=0.0)


@pytest.mark.row(20)
@pytest.mark.parametrize("limit", ["max_bytes", "max_msgs"])
async def test_a_full_bucket_refuses_and_still_deletes(nats: Bus, limit: str) -> None:
    """A typed 503 with the reason, and Retry-After; deletes go through and make room."""
    sessions = (await create_buckets(nats)).sessions
    await _fill(nats, sessions, limit, room=3)
    revisions: dict[str, int] = {}
    refused: Full | None = None
    while refused is None:
        try:
            revisions[f"s{len(revisions)}"] = await sessions.create(f"s{len(revisions)}", RECORD)
        except Full as exc:
            refused = exc
    assert refused.code == 503
    assert refused.retry_after
    assert "exceeded" in str(refused)
    assert revisions
    for key, revision in revisions.items():
        await sessions.delete(key, revision)
        assert await sessions.get(key) is None
        await sessions.forget(key, 2**62)
    await sessions.create("again", RECORD)
    assert set(await sessions.list()) == {"again"}


@pytest.mark.row(20)
@pytest.mark.parametrize("limit", ["max_bytes", "max_msgs"])
async def test_when_sessions_are_full_players_hear_503_and_those_who_leave_are_let_go(
    settings: NatsSettings, limit: str
) -> None:
    """Whoever asks is told so, in time; who plays plays on; who leaves frees the seat, and with the record room."""
    async with real_world(settings) as (world, _), world.matchmaker(WARM, gone_ttl=1.0):
        await world.servers_ready(1)
        async with active(world) as (stays, player):
            async with active(world) as (leaves, _):
                await _fill(world.bus, world.buckets.sessions, limit, room=0)
                answers = await world.ask(timeout=3)
                assert failed(await answers.end()).code == 503
                both = [stays.session_id, leaves.session_id]
                await world.eventually(lambda: world.seats_are(both), "no seat is held for nobody")
            await world.eventually(lambda: world.seats_are([stays.session_id]), "the seat is free")
            assert await echoes(player)
        await world.eventually(lambda: world.seats_are([]), "the other seat is free")
        await world.eventually(lambda: _seated(world), "there is room again", timeout=10)


@pytest.mark.row(20)
@pytest.mark.slow
async def test_when_connections_are_full_those_who_play_play_on(settings: NatsSettings) -> None:
    """A game server cannot write that a player is there: the game goes on, and the claim is made good when there is
    room again."""
    game = msgspec.structs.replace(WARM, claim_time=50)
    async with real_world(settings) as (world, servers), world.matchmaker(game):
        await world.servers_ready(1)
        async with active(world) as (stays, _):
            await _fill(world.bus, world.buckets.active_connections, "max_msgs", room=0)
            late = await world.play()
            async with playing(late):
                assert len(servers.of(stays).players) == 2
                await _fill(world.bus, world.buckets.active_connections, "max_msgs", room=-1)
                await world.session_becomes(late.session_id, SessionState.ACTIVE)


@pytest.mark.row(20)
@pytest.mark.slow
async def test_when_deployments_are_full_an_empty_server_ends_all_the_same(settings: NatsSettings) -> None:
    """It costs money. Whoever would need a new one hears 503."""
    game = msgspec.structs.replace(ARENA, empty_ttl=0.5)
    async with (
        connect(settings, name="world") as bus,
        World(bus, settings) as world,
        world.matchmaker(game),
    ):
        ready = await world.play()
        await world.server_of(ready).connect(ready)
        await world.eventually(lambda: world.seats_are([ready.session_id]), "a seat")
        await _fill(world.bus, world.buckets.deployments, "max_bytes", room=0)
        await world.server_of(ready).disconnect(ready)
        await world.eventually(lambda: _none_runs(world), "the server has been stopped")
        answers = await world.ask(timeout=2)
        assert failed(await answers.end()).code in (408, 503)
        await _fill(world.bus, world.buckets.deployments, "max_bytes", room=-1)
        await world.nothing_is_left()


async def _none_runs(world: World) -> bool:
    return not await world.fake.list()


async def _fill(bus: Bus, store: Bucket[object], limit: str, *, room: int) -> None:  # type: ignore[type-arg]
    """Let the bucket hold `room` more messages than it does now (-1: as many as come)."""
    info = await bus.js.stream_info(store.stream)
    if room < 0:
        value = -1
    elif limit == "max_msgs":
        value = info.state.messages + room
    else:
        value = info.state.bytes + 1 + room * 220
    await bus.js.update_stream(info.config.evolve(**{limit: value}))


async def _seated(world: World) -> bool:
    return isinstance(await (await world.ask(timeout=2)).end(), SessionReady)
