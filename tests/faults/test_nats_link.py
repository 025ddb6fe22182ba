"""The link to NATS goes bad rather than NATS: half-open, or so slow that writes arrive after their time-out."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from tests.faults.real_servers import active, echoes, playing, real_world, seat_within, settled_sweeps
from tests.faults.tcp_link import link_to
from tests.matchmaker.world import ARENA
from tests.polling import eventually
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import DoesNotWrite, LostRace
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats import connection as nats_connection
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionRecord, SessionState
from tipoff_shared.settings import NatsSettings

WARM = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60)
RECORD = SessionRecord("s", SessionState.REQUESTED, "arena", "1", "1", "me", created_at=0.0)


@pytest.fixture
def quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links are found out within 1.5 s, not 15."""
    monkeypatch.setattr(nats_connection, "PING_INTERVAL", 0.5)


@pytest.mark.row(22)
@pytest.mark.slow  # what it says: 15 s
async def test_a_half_open_link_is_noticed_within_15_s(settings: NatsSettings) -> None:
    """No byte comes through, and nobody says so; also when so much waits to be sent that the socket takes no more.
    It is told, and when the link is good again the connection is."""
    await asyncio.gather(*(_noticed_within_15_s(settings, unsent) for unsent in (0, 20_000_000)))


async def _noticed_within_15_s(settings: NatsSettings, unsent: int) -> None:
    async with link_to(settings) as (link, through), connect(through, name="far") as bus:
        noticed, back = asyncio.Event(), asyncio.Event()
        bus.on_disconnect(noticed.set)
        bus.on_reconnect(back.set)
        link.freeze()
        began = time.monotonic()
        for _ in range(unsent // 100_000):
            await bus.publish("nowhere", bytes(100_000))
        async with asyncio.timeout(20):
            await noticed.wait()
        took = time.monotonic() - began
        assert not bus.connected
        link.lose_what_waits()
        link.thaw()
        async with asyncio.timeout(10):
            await back.wait()
        await bus.flush()
        print(f"half-open, {unsent} bytes unsent: noticed after {took:.1f} s")
        assert took <= 15.5


@pytest.mark.row(22)
@pytest.mark.slow
async def test_a_half_open_link_of_a_game_server_costs_nobody_the_game(
    settings: NatsSettings, quick_pings: None
) -> None:
    """Its lease expires, its orchestrator says that it runs: it gets nobody new for a while, and keeps whom it has.
    When the link is good again, what happened meanwhile is told."""
    async with (
        link_to(settings) as (link, through),
        real_world(settings, servers_settings=through) as (world, servers),
        world.matchmaker(WARM, lease_ttl=1.0, lease_grace=8.0) as matchmaker,
    ):
        await world.servers_ready(1)
        late = await world.play()
        async with active(world) as (stays, player):
            async with active(world) as (leaves, _):
                link.freeze()
            await world.eventually(lambda: _untrusted(matchmaker, stays.deployment_id), "its lease is missed")
            async with playing(late) as joins:
                assert await echoes(player)
                assert await echoes(joins)
                link.lose_what_waits()
                link.thaw()
                await world.session_becomes(late.session_id, SessionState.ACTIVE, timeout=15)
                await world.session_becomes(leaves.session_id, SessionState.GONE, timeout=15)
                assert (await seat_within(world, 10)).deployment_id == stays.deployment_id
                await settled_sweeps(matchmaker, 2)
                await world.session_becomes(stays.session_id, SessionState.ACTIVE)
                assert await echoes(player)
                assert servers.of(stays).state == "ready"


@pytest.mark.row(15)
@pytest.mark.slow  # a write's time-out
async def test_a_write_that_arrives_after_its_time_out_is_refused(settings: NatsSettings) -> None:
    """The writer was told `Unavailable`; somebody else goes on; then the late write arrives, and changes nothing."""
    async with connect(settings, name="near") as near, link_to(settings) as (link, through):
        ours = (await create_buckets(near)).sessions
        async with connect(through, name="far") as far:
            theirs = (await create_buckets(far)).sessions
            revision = await ours.create("s", RECORD)
            link.freeze()
            late = [
                asyncio.create_task(
                    theirs.update("s", msgspec.structs.replace(RECORD, owner="late"), revision)
                ),
                asyncio.create_task(theirs.create("new", msgspec.structs.replace(RECORD, owner="late"))),
                asyncio.create_task(theirs.delete("s", revision)),
            ]
            outcomes = await asyncio.gather(*late, return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [Unavailable] * 3
            won = await ours.update("s", msgspec.structs.replace(RECORD, owner="winner"), revision)
            await ours.create("new", msgspec.structs.replace(RECORD, owner="winner"))
            link.thaw()
            await far.flush()  # all that waited has been handled
            found = await ours.list()
            assert {key: entry.value.owner for key, entry in found.items()} == {
                "s": "winner",
                "new": "winner",
            }
            assert found["s"].revision == won

            async def lost() -> bool:
                try:
                    await theirs.update("s", RECORD, revision)
                except DoesNotWrite:  # until one write has shown that NATS writes again
                    return False
                except LostRace:
                    return True
                raise AssertionError("an old revision was taken")

            await eventually(lost, "the old revision is refused")


@pytest.mark.row(15, 22)
@pytest.mark.slow
async def test_a_matchmaker_whose_link_froze_makes_no_second_session(
    settings: NatsSettings, quick_pings: None
) -> None:
    """Its link freezes in the middle of requests, which the players ask again of another one; then all that it wrote
    arrives late: one seat for each request, one session, and all of them right."""
    async with (
        link_to(settings) as (link, through),
        real_world(settings) as (world, _),
        real_world(through) as (far_world, _),
    ):
        game = msgspec.structs.replace(ARENA, seats=64, min_ready=1, max_deployments=1, empty_ttl=60)
        far_world.fake = world.fake
        async with world.matchmaker(game, instance="near"):
            await world.servers_ready(1)
            async with far_world.matchmaker(game, instance="far"):
                asked = [await world.ask() for _ in range(20)]
                link.freeze()
                requests = [answers.request_id for answers in asked]
                await asyncio.sleep(0.7)  # the owner is silent for longer than `owner_silence`
                retry = world.bus.subjects.retry("arena", "1")
                asked_again = [await world.ask(request_id=id, subject=retry) for id in requests]
                again = [await answers.until(SessionReady) for answers in asked_again]
                link.thaw()
                await asyncio.sleep(1.0)  # what was late arrives
                sessions = await world.buckets.sessions.list()
                assert len(sessions) == 20
                assert {ready.session_id for ready in again} == set(sessions)
                assert {ready.client_id for ready in again} == {e.value.client_id for e in sessions.values()}
                assert sorted(await world.seats()) == sorted(sessions)
                assert len(world.fake.started) == 1


async def _untrusted(matchmaker: object, deployment_id: str) -> bool:
    return deployment_id not in matchmaker.parts.trust  # type: ignore[attr-defined]
