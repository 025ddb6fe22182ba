"""Playing on game servers that are not trusted: they only send events, and players notice no difference."""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec
import pytest

from tests.faults.real_servers import active, connected, echoes, playing, settled_sweeps
from tests.isolated.world import IsolatedNats, IsolatedWorld
from tests.matchmaker.world import ARENA
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import DeploymentState, LeaseState, SessionState
from tipoff_shared.server_events import Players, ServerEvent, seal

LASTING = msgspec.structs.replace(ARENA, empty_ttl=60, max_deployments=1)


async def test_join_and_leave_are_written_down_by_the_matchmaker(isolated: IsolatedWorld) -> None:
    world = isolated.world
    async with world.matchmaker(LASTING, profile="isolated"):
        async with active(world) as (ready, player):
            assert await echoes(player)
            entry = await world.buckets.active_connections.get(ready.session_id)
            assert entry is not None
            assert entry.value == ready.client_id
            lease = await world.buckets.gameservers.get(ready.deployment_id)
            assert lease is not None
            assert lease.value.state is LeaseState.READY
            began = time.monotonic()
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert session.reason == "the player left"
        print(f"leave to session over: {(time.monotonic() - began) * 1000:.0f} ms")
        await world.eventually(lambda: world.seats_are([]), "the seat is free")
    async with world.matchmaker(profile="isolated"):
        await world.nothing_is_left()


async def test_a_crashed_server_is_reaped(isolated: IsolatedWorld) -> None:
    """It says nothing any more: its lease expires, its orchestrator knows nothing of it, its seats are free."""
    world = isolated.world
    async with world.matchmaker(profile="isolated"):
        async with active(world) as (ready, _):
            await world.fake.vanish(ready.deployment_id)
            await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.nothing_is_left()


@pytest.mark.slow
async def test_a_server_restarted_at_its_address_ends_the_sessions_of_its_former_life(
    isolated: IsolatedWorld,
) -> None:
    world = isolated.world
    async with world.matchmaker(LASTING, profile="isolated"):
        async with active(world) as (ready, _):
            await isolated.servers.restart(ready.deployment_id)
            session = await world.session_becomes(ready.session_id, SessionState.GONE)
            assert "restarted" in session.reason
        async with active(world) as (new, player):
            assert new.deployment_id == ready.deployment_id
            assert await echoes(player)


async def test_who_leaves_while_no_matchmaker_runs_is_missed_by_the_next_one(isolated: IsolatedWorld) -> None:
    """The stream keeps what happened; who stayed goes on playing."""
    world = isolated.world
    async with contextlib.AsyncExitStack() as stays:
        async with contextlib.AsyncExitStack() as leaves, world.matchmaker(LASTING, profile="isolated"):
            gone, _ = await leaves.enter_async_context(active(world))
            here, player = await stays.enter_async_context(active(world))
        await world.eventually(lambda: _events_wait(isolated, 1), "its leave is in the stream")
        async with world.matchmaker(LASTING, profile="isolated"):
            session = await world.session_becomes(gone.session_id, SessionState.GONE)
            assert session.reason == "the player left"
            assert await world.seats() == [here.session_id]
            assert await echoes(player)


async def test_a_join_and_a_leave_that_meet_in_the_wrong_order_leave_nothing(isolated: IsolatedWorld) -> None:
    """The one who had the join was stopped; it comes after the leave: the session is over all the same."""
    world = isolated.world
    async with world.matchmaker(LASTING, profile="isolated") as matchmaker:
        assert matchmaker.parts.event_secret is not None
        ready = await world.play()
        server = isolated.servers.of(ready)
        key = matchmaker.parts.event_secret.key_of(ready.deployment_id)
        left = ServerEvent(server.boot_id, time.time(), 1001, Players(left=[ready.session_id]))
        joined = ServerEvent(
            server.boot_id, time.time(), 1000, Players(joined={ready.session_id: ready.client_id})
        )
        for event in (left, joined):
            body, headers = seal(key, ready.deployment_id, event)
            await world.bus.js.publish(world.bus.subjects.events(ready.deployment_id), body, headers=headers)
        await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.eventually(lambda: _nobody_connected(isolated), "no connection is left")
        await world.eventually(lambda: world.seats_are([]), "the seat is free")


@pytest.mark.slow
async def test_two_matchmakers_share_the_events(isolated: IsolatedWorld) -> None:
    """Ten players come and go; each session ends once, and nothing is left."""
    world = isolated.world
    game = msgspec.structs.replace(ARENA, seats=10)
    async with world.matchmaker(game, profile="isolated"), world.matchmaker(game, profile="isolated"):

        async def come_and_go() -> None:
            async with active(world) as (ready, player):
                assert await echoes(player)
            session = await world.session_becomes(ready.session_id, SessionState.GONE)
            assert session.reason == "the player left"

        await asyncio.gather(*(come_and_go() for _ in range(10)))
        await world.nothing_is_left()


@pytest.mark.slow  # leases, and the time in which a missing one means nothing
async def test_without_matchmakers_everything_looks_dead_and_nobody_is_reaped(
    isolated: IsolatedWorld,
) -> None:
    """Nobody writes leases; they expire. The next matchmaker waits for two TTLs before their absence means anything,
    and by then the servers have been heard."""
    world = isolated.world
    async with contextlib.AsyncExitStack() as stays:
        async with world.matchmaker(LASTING, profile="isolated"):
            ready, player = await stays.enter_async_context(active(world))
        await world.eventually(lambda: _lease_is_gone(isolated, ready.deployment_id), "its lease has expired")
        async with world.matchmaker(LASTING, profile="isolated", lease_grace=0.2) as matchmaker:
            for _ in range(5):
                await matchmaker.parts.reconciler.once()
            assert await connected(world, ready)
            await settled_sweeps(matchmaker, 5)
            record = await world.deployment_becomes(ready.deployment_id, DeploymentState.READY)
            assert list(record.seats) == [ready.session_id]
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
            assert await echoes(player)
            other = await world.play()
            assert other.deployment_id == ready.deployment_id
            async with playing(other) as second:
                assert await echoes(second)


async def _events_wait(isolated: IsolatedWorld, at_least: int) -> bool:
    bus = isolated.world.bus
    info = await bus.js.stream_info(bus.subjects.events_stream, subjects_filter=">")
    return (info.state.messages or 0) >= at_least


async def _nobody_connected(isolated: IsolatedWorld) -> bool:
    return await isolated.world.buckets.active_connections.list() == {}


async def _lease_is_gone(isolated: IsolatedWorld, deployment_id: str) -> bool:
    return await isolated.world.buckets.gameservers.get(deployment_id) is None


async def test_a_launcher_hears_that_a_matchmaker_lives(
    isolated: IsolatedWorld, isolated_nats: IsolatedNats
) -> None:
    """Without one nobody writes leases; a launcher asks before it takes a missing lease for a dead server."""
    async with (
        isolated.world.matchmaker(profile="isolated"),
        connect(isolated_nats.settings("launcher"), name="launcher") as launcher,
    ):
        await launcher.request(launcher.subjects.ping_matchmaker, b"", timeout=2)
