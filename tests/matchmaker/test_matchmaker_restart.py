"""A matchmaker may die at any line: whatever is written down then, the next one ends it or goes on from it."""

from __future__ import annotations

import time

import msgspec
import pytest

from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.deployments.fleet_limit import fleet_key
from tipoff_matchmaker.deployments.state_machine import planned
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared import names
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import FleetRecord, SessionRecord, SessionState

WARM = msgspec.structs.replace(ARENA, min_ready=1, empty_ttl=60)
ONE = msgspec.structs.replace(ARENA, max_deployments=1)


def requested(request_id: str, *, deadline: float, owner: str = "dead") -> SessionRecord:
    return SessionRecord(
        names.session_id(request_id),
        SessionState.REQUESTED,
        "arena",
        "1",
        "4711",
        owner,
        created_at=time.time(),
        deadline=deadline,
    )


async def test_after_a_crash_of_everything_a_new_player_is_served_at_once(world: World) -> None:
    """The records and leases of dead servers are still there: nobody is sent to them, and they are cleared away."""
    async with world.matchmaker(ONE):
        old = await world.play()
        await world.server_of(old).connect(old)
        await world.session_becomes(old.session_id, SessionState.ACTIVE)
    await world.fake.vanish(old.deployment_id)
    await world.buckets.gameservers.put(old.deployment_id, world.server_of(old).lease, ttl=60)
    began = time.monotonic()
    async with world.matchmaker(ONE):
        new = await world.play()
        assert time.monotonic() - began < 3
        assert new.deployment_id != old.deployment_id
        await world.session_becomes(old.session_id, SessionState.GONE)
        assert await world.seats() == [new.session_id]
        assert not await world.buckets.active_connections.list()


async def test_a_restarted_matchmaker_goes_on_with_living_servers(world: World) -> None:
    """Sessions stay, and the warm seat is handed out at once."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        old = await world.play()
        await world.server_of(old).connect(old)
        await world.session_becomes(old.session_id, SessionState.ACTIVE)
    async with world.matchmaker(WARM):
        answers = await world.ask()
        new = await answers.end()
        assert isinstance(new, SessionReady)
        assert not answers.progress
        assert new.deployment_id == old.deployment_id
        assert sorted(await world.seats()) == sorted([old.session_id, new.session_id])


async def test_leases_alone_prove_nothing_while_the_orchestrator_is_silent(world: World) -> None:
    """A lease from before the start may be a dead server's; the next heartbeat proves it alive."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        old = await world.play()
    server = world.server_of(old)
    server.beating = False
    await world.buckets.gameservers.put(server.id, server.lease, ttl=60)
    silent = FakeOrchestrator("fake")
    from tipoff_orchestrator_client.base import OrchestratorUnavailable

    for operation in ("list", "get", "deploy"):
        silent.fail(operation, OrchestratorUnavailable("silent", retryable=True), times=10_000)  # type: ignore[arg-type]
    async with world.matchmaker(WARM, orchestrator=silent) as matchmaker:
        assert server.id not in matchmaker.parts.trust
        answers = await world.ask()
        await server.beat()
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert ready.deployment_id == server.id
    await silent.close()


async def test_a_seat_without_a_session_is_free_after_its_deadline(world: World) -> None:
    """Died between seat and record."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        ready = await world.play()
        entry = await world.buckets.deployments.get(ready.deployment_id)
        assert entry is not None
        seats = {**entry.value.seats, "snobody": time.time() + 0.3}
        await world.buckets.deployments.update(
            ready.deployment_id, msgspec.structs.replace(entry.value, seats=seats), entry.revision
        )
        await world.eventually(
            lambda: world.seats_are([ready.session_id]), "only the seat that counts is left"
        )


async def test_a_request_nobody_looks_after_ends_at_its_deadline(world: World) -> None:
    """Died with the record written as `requested`."""
    record = requested(names.new_request_id(), deadline=time.time() + 0.2)
    await world.buckets.sessions.create(record.id, record)
    async with world.matchmaker(ARENA):
        session = await world.session_becomes(record.id, SessionState.GONE)
        assert "in time" in session.reason


async def test_the_same_request_id_takes_over_from_a_dead_owner(world: World) -> None:
    """Asked again: the client id of before, and one session."""
    request_id = names.new_request_id()
    record = requested(request_id, deadline=time.time() + 60)
    await world.buckets.sessions.create(record.id, record)
    async with world.matchmaker(ARENA):
        ready = await world.play(request_id=request_id)
        assert ready.client_id == "4711"
        assert len(await world.buckets.sessions.list()) == 1
        assert len(world.fake.started) == 1


async def test_a_deployment_planned_and_never_started_is_cleared_away(world: World) -> None:
    """Died before the orchestrator was told."""
    hasty = msgspec.structs.replace(ONE, start_timeout=1)
    record = planned("arena-planned", hasty, time.time() - 0.8)
    await world.buckets.fleets.create(
        fleet_key("arena", "1"), FleetRecord("arena", "1", {record.id: time.time()})
    )
    await world.buckets.deployments.create(record.id, record)
    async with world.matchmaker(hasty):
        assert isinstance(await world.play(), SessionReady)
        await world.eventually(lambda: world.is_gone(record.id), "the planned one is gone")


async def test_a_deployment_started_and_not_noted_is_found_again(world: World) -> None:
    """Died after the orchestrator was told: the server that runs is used."""
    record = planned("arena-running", ONE, time.time())
    await world.buckets.fleets.create(
        fleet_key("arena", "1"), FleetRecord("arena", "1", {record.id: time.time()})
    )
    await world.buckets.deployments.create(record.id, record)
    await world.fake.deploy(DeploySpec(record.id, "arena", "1", 4))
    await world.eventually(lambda: world.ran(1), "it runs")
    async with world.matchmaker(ONE):
        assert (await world.play()).deployment_id == record.id


async def test_a_reservation_without_a_deployment_does_not_block_for_ever(world: World) -> None:
    """Died between reservation and record."""
    long_ago = time.time() - 60
    await world.buckets.fleets.create(
        fleet_key("arena", "1"), FleetRecord("arena", "1", {"arena-never": long_ago})
    )
    async with world.matchmaker(ONE):
        assert isinstance(await world.play(), SessionReady)


@pytest.mark.slow
async def test_everything_ends_clean_after_a_storm(world: World) -> None:
    """Two matchmakers, players who come, stay, leave or never connect, servers that die: invariant G at the end."""
    game = msgspec.structs.replace(
        ARENA,
        seats=3,
        max_deployments=6,
        min_ready=1,
        start_timeout=5.0,  # the second matchmaker may go with a start in hand
        claim_time=4,
    )
    async with world.matchmaker(game) as first:
        async with world.matchmaker(game):
            asked = [await world.ask() for _ in range(18)]
            answers = [await one.end() for one in asked]
            ready = [answer for answer in answers if isinstance(answer, SessionReady)]
            assert len(ready) == 18
            for number, answer in enumerate(ready):
                if number % 3:
                    await world.server_of(answer).connect(answer)
            await world.fake.kill(ready[0].deployment_id)
            for number, answer in enumerate(ready):
                if number % 3 == 1 and world.server_of(answer).beating:
                    await world.server_of(answer).disconnect(answer)
        for number, answer in enumerate(ready):
            if number % 3 == 2 and world.server_of(answer).beating:
                await world.server_of(answer).disconnect(answer)
        await world.nothing_is_left(servers=1, timeout=20)
        assert first.parts.handlers.in_flight == 0
