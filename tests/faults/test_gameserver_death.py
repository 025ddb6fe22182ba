"""Game servers die, hang and come back: their players' seats are free again, and nobody else's."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.faults.echo_processes import echo_games, pid_of, quick_settings
from tests.faults.real_servers import active, echoes, real_world
from tests.gameserver.players import by_websocket, token_of
from tests.matchmaker.world import ARENA, World, failed
from tipoff_gameserver import GameServer
from tipoff_launcher.compose import run_launcher
from tipoff_launcher.settings import Settings as LauncherSettings
from tipoff_matchmaker.service import run_matchmaker
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.messages import Failed, SessionReady
from tipoff_shared.records import SessionState
from tipoff_shared.settings import NatsSettings

ONE = msgspec.structs.replace(ARENA, max_deployments=1, empty_ttl=60)


@pytest.fixture
async def process_world(world: World, settings: NatsSettings, tmp_path: Path) -> AsyncIterator[World]:
    """With a matchmaker and a launcher, whose game servers are processes."""
    games = echo_games(tmp_path)
    launcher = LauncherSettings(
        state_dir=tmp_path / "launcher", stop_grace=0.5, stop_servers_on_exit=True, die_with_parent=False
    )
    async with (
        run_launcher(launcher, games, settings),
        run_matchmaker(quick_settings(), games, settings),
    ):
        yield world


@pytest.mark.row(46)
async def test_seats_of_a_server_killed_by_kill_9_are_free_at_once(process_world: World) -> None:
    """The launcher sees the process end and says so; its players may play again, on another server."""
    world = process_world
    async with active(world) as (ready, player):
        assert await echoes(player)
        began = time.monotonic()
        os.kill(await pid_of(world, ready), signal.SIGKILL)
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        await world.eventually(lambda: world.seats_are([]), "no seat is left")
        print(f"kill -9 to seats free: {(time.monotonic() - began) * 1000:.0f} ms")
        assert time.monotonic() - began < 3
        assert "SIGKILL" in session.reason
    again = await world.play()
    assert again.deployment_id != ready.deployment_id
    assert set(await world.buckets.active_connections.list()) <= {again.session_id}


@pytest.mark.row(46)
@pytest.mark.slow  # a lease and a grace
async def test_a_server_that_hangs_is_stopped_after_ttl_and_grace(process_world: World) -> None:
    """SIGSTOP: the process is there, so its orchestrator calls it running. Its lease expires: nobody new is sent
    there at once, and when the grace is over it is ended."""
    world = process_world
    async with active(world) as (ready, _):
        pid = await pid_of(world, ready)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            await world.session_becomes(ready.session_id, SessionState.GONE, timeout=15)
            print(f"hung server ended after {time.monotonic() - began:.1f} s (TTL 2, grace 1)")
            await world.eventually(lambda: world.is_gone(ready.deployment_id), "it is gone", timeout=10)
            assert not await _is_alive(pid)
        finally:
            if await _is_alive(pid):
                os.kill(pid, signal.SIGCONT)
    assert (await world.play()).deployment_id != ready.deployment_id


@pytest.mark.row(46)
@pytest.mark.slow  # a lease
async def test_a_server_lost_without_any_event_is_missed(settings: NatsSettings) -> None:
    """Its machine is gone: no event, only a lease that expires and an orchestrator that knows nothing of it."""
    async with real_world(settings) as (world, servers), world.matchmaker(ARENA):
        async with active(world) as (ready, _):
            began = time.monotonic()
            await world.fake.vanish(ready.deployment_id)
            await world.session_becomes(ready.session_id, SessionState.GONE)
            print(f"vanished server missed after {time.monotonic() - began:.1f} s (TTL 1)")
            assert ready.deployment_id not in servers.running
        await world.nothing_is_left()


@pytest.mark.row(47)
async def test_a_server_restarted_at_its_address_ends_the_sessions_of_its_former_life(
    settings: NatsSettings,
) -> None:
    """Another boot id: who played there is gone, their tokens are refused, and new players come in."""
    async with real_world(settings) as (world, servers), world.matchmaker(ONE):
        unused = await world.play()
        async with active(world) as (ready, _):
            restarted = await servers.restart(ready.deployment_id)
            session = await world.session_becomes(ready.session_id, SessionState.GONE)
            assert "restarted" in session.reason
            await world.session_becomes(unused.session_id, SessionState.GONE)
        await world.eventually(lambda: world.seats_are([]), "their seats are free")
        assert await _refused(restarted, unused)
        async with active(world) as (new, player):
            assert new.deployment_id == ready.deployment_id
            assert await echoes(player)
            assert await world.seats() == [new.session_id]


@pytest.mark.row(48)
async def test_left_before_connected_and_doubled_events_change_nothing(settings: NatsSettings) -> None:
    """A delete without a put, a put after the end, everything again: each session ends once, each seat is freed once,
    and nobody else's."""
    async with real_world(settings) as (world, _), world.matchmaker(ONE):
        connections = world.buckets.active_connections

        async def ended(ready: SessionReady) -> None:
            session = await world.session_becomes(ready.session_id, SessionState.GONE)
            assert session.reason == "the player left"

        async with active(world) as (stays, player):
            first = await world.play()
            for _ in range(3):
                await connections.delete(first.session_id)  # came and left, and only the second is heard
            await ended(first)
            async with active(world) as (second, _):
                with pytest.raises(LostRace):  # a late copy of the server's own put
                    await connections.create(second.session_id, second.client_id)
            await ended(second)
            for session in (first, second):
                await connections.delete(session.session_id)
                await connections.put(session.session_id, session.client_id)  # comes after the end
            await world.eventually(lambda: _connections_are(world, stays), "what came late is taken away")
            for session in (first, second):
                await ended(session)
            assert await world.seats() == [stays.session_id]
            assert await echoes(player)


@pytest.mark.row(49)
async def test_a_certificate_digest_that_is_never_reported_is_a_typed_error_in_time(
    world: World,
) -> None:
    """A WebTransport server says that it is ready, and its digest does not come: 502 within the time for it."""
    world.announce = False
    game = msgspec.structs.replace(ARENA, ready="context", primary="webtransport")
    orchestrator = world.with_ports(server=7777)
    async with world.matchmaker(game, orchestrator=orchestrator, start_failures=1) as matchmaker:
        assert matchmaker.parts.contexts.timeout <= 10
        matchmaker.parts.contexts.timeout = 0.5
        answers = await world.ask()
        await world.eventually(lambda: world.ran(1), "the server runs")
        began = time.monotonic()
        context = {"request_id": next(iter(world.servers)), "public_ip": "203.0.113.9"}
        await world.bus.publish(world.bus.subjects.contexts, msgspec.json.encode(context))
        assert failed(await answers.end()).code == 502
        assert time.monotonic() - began < 2
        await world.nothing_is_left()


async def _is_alive(pid: int) -> bool:
    try:
        stat = await asyncio.to_thread(Path(f"/proc/{pid}/stat").read_text)
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def _refused(server: GameServer, ready: SessionReady) -> bool:
    async with by_websocket(server, token_of(ready)) as player:
        return isinstance(player.answer, Failed)


async def _connections_are(world: World, ready: SessionReady) -> bool:
    return set(await world.buckets.active_connections.list()) == {ready.session_id}
