"""NATS dies or is away: the game goes on, nobody is reaped, and afterwards everything that happened is known."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from tests.faults.nats_writers import Acknowledged, write_until
from tests.faults.real_servers import active, connected, echoes, playing, real_world, settled_sweeps
from tests.matchmaker.world import ARENA
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_gameserver import LeaveReason
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionState

WARM = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60, claim_time=45)


@pytest.fixture
async def mortal_nats(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    """A nats-server of this test's own, to kill."""
    async with embedded_nats(tmp_path / "nats") as server:
        yield server


@pytest.mark.row(13)
@pytest.mark.slow  # it is down for two seconds, and time-outs of what was under way
async def test_no_acknowledged_write_is_lost_by_kill_9(mortal_nats: EmbeddedNats) -> None:
    """Eight writers create and change records; NATS is killed and is back after 2 s; what was acknowledged is there,
    and writing goes on within 15 s."""
    async with connect(mortal_nats.settings("kill"), name="writers") as bus:
        sessions = (await create_buckets(bus)).sessions
        written = Acknowledged()
        stop = asyncio.Event()
        writers = [asyncio.create_task(write_until(stop, sessions, f"w{n}", written)) for n in range(8)]
        await written.reaches(2000)
        await mortal_nats.kill()
        await asyncio.sleep(2)  # the outage
        back = time.monotonic()
        await mortal_nats.start()
        await written.reaches(written.count + 100, timeout=15)
        service = time.monotonic() - back
        stop.set()
        await asyncio.gather(*writers)
        lost = await written.lost(sessions)
    print(f"{written.count} acknowledged, {len(lost)} lost, writing again after {service:.1f} s")
    assert not lost
    assert service < 15


@pytest.mark.row(13, 14, 16)
@pytest.mark.slow  # an outage longer than every TTL
async def test_the_game_goes_on_while_nats_is_away_and_afterwards_all_is_known(
    mortal_nats: EmbeddedNats,
) -> None:
    """NATS is away for longer than leases, claim deadlines and graces (scaled down): who plays plays on; who has a
    token joins; who leaves is gone; and when NATS is back that is what the matchmaker says, and it reaped nobody."""
    settings = mortal_nats.settings("outage")
    async with (
        real_world(settings) as (world, servers),
        world.matchmaker(WARM, lease_ttl=1.0, lease_grace=1.0, orphan_grace=1.0) as matchmaker,
    ):
        await world.servers_ready(1)
        late = await world.play()
        async with active(world) as (stays, staying):
            async with active(world) as (leaves, _):
                server = servers.of(stays)
                await mortal_nats.kill()
                ticks = server.ticks
            await asyncio.sleep(3.5)  # TTL 1, grace 1, claim 2, and the ticks of 3 s
            assert await echoes(staying)
            assert server.ticks > ticks + 60
            async with playing(late) as joins:
                assert await echoes(joins)
                back = time.monotonic()
                await mortal_nats.start()
                await world.reconnected()
                await world.session_becomes(late.session_id, SessionState.ACTIVE, timeout=15)
                await world.session_becomes(leaves.session_id, SessionState.GONE, timeout=15)
                another = await world.play()
                print(f"everything told {time.monotonic() - back:.1f} s after NATS was started again")
                assert time.monotonic() - back < 15
                await settled_sweeps(matchmaker, 2)
                for session in (stays, late):
                    record = await world.session(session.session_id)
                    assert record is not None
                    assert record.state is SessionState.ACTIVE
                assert await echoes(staying)
                assert await echoes(joins)
                assert another.deployment_id == stays.deployment_id
                assert world.fake.living == [stays.deployment_id]
                assert server.players.get(1) is not None
                assert LeaveReason.KICKED not in [
                    what[2] for what in server.game.happened if what[0] == "leave"
                ]  # type: ignore[attr-defined]


@pytest.mark.row(14)
@pytest.mark.slow
async def test_a_matchmaker_started_after_the_outage_reaps_nobody(mortal_nats: EmbeddedNats) -> None:
    """No matchmaker saw the outage; the leases are gone, the servers come back a moment later than the matchmaker:
    it waits for them."""
    settings = mortal_nats.settings("restart")
    async with real_world(settings) as (world, servers):
        async with world.matchmaker(WARM):
            await world.servers_ready(1)
            stays = await world.play()
        async with playing(stays) as player:
            server = servers.of(stays)
            await world.eventually(
                lambda: connected(world, stays), "its server says that the player is there"
            )
            await mortal_nats.kill()
            await asyncio.sleep(2.5)  # the outage: longer than the lease lives
            await mortal_nats.start()
            await world.reconnected()
            async with world.matchmaker(WARM, lease_grace=1.0) as matchmaker:
                await settled_sweeps(matchmaker, 2)
                await world.session_becomes(stays.session_id, SessionState.ACTIVE)
                assert (await world.play()).deployment_id == stays.deployment_id
                assert await echoes(player)
                assert servers.of(stays) is server


@pytest.mark.row(16)
@pytest.mark.slow
async def test_a_server_that_died_during_the_outage_is_found_out(mortal_nats: EmbeddedNats) -> None:
    """Nobody saw it: its lease had expired before NATS was back, so there is neither event nor marker. Its sessions
    end and its players may play again; the other server is not touched."""
    settings = mortal_nats.settings("death")
    two = msgspec.structs.replace(ARENA, seats=1, max_deployments=2, empty_ttl=60)
    async with (
        real_world(settings) as (world, _),
        world.matchmaker(two),
        active(world) as (dies, _),
        active(world) as (lives, player),
    ):
        assert dies.deployment_id != lives.deployment_id
        await mortal_nats.kill()
        await world.fake.vanish(dies.deployment_id)
        await asyncio.sleep(1.5)  # the outage
        await mortal_nats.start()
        back = time.monotonic()
        await world.reconnected()
        await world.session_becomes(dies.session_id, SessionState.GONE, timeout=15)
        print(f"found out {time.monotonic() - back:.1f} s after NATS was started again")
        assert await echoes(player)
        record = await world.session(lives.session_id)
        assert record is not None
        assert record.state is SessionState.ACTIVE
        assert isinstance(await world.play(), SessionReady)
