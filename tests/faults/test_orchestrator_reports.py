"""What an orchestrator reports is not always so: servers vanish, events are forged, stops fail, lists lie."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest

from tests.faults.fake_orchestrator import BUSY, playing
from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.fleet import stop
from tipoff_orchestrator_client.base import (
    OrchestratorUnavailable,
    Port,
    RunState,
)
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import DeploymentState, SessionState

# 42: ready, and then not any more.


@pytest.mark.row(42)
@pytest.mark.parametrize("how", ["dies without an event", "vanishes"])
async def test_what_is_gone_is_noticed_within_two_sweeps(world: World, how: str) -> None:
    """Its sessions close, its seats are free."""
    async with world.matchmaker(sweep_interval=3600) as matchmaker:
        ready = await playing(world)
        if how == "vanishes":
            await world.fake.vanish(ready.deployment_id)
        else:
            world.fake.lose_events()
            await world.fake.kill(ready.deployment_id)
        for _ in range(2):
            await matchmaker.parts.reconciler.once()
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert session.reason
        await world.deployment_becomes(ready.deployment_id, DeploymentState.GONE)
        assert await world.seats() == []


# 43: events.


@pytest.mark.row(43)
async def test_events_move_nothing_without_being_confirmed(world: World) -> None:
    """Ten times, out of order, forged, of unknown servers: who plays goes on playing."""
    async with world.matchmaker() as matchmaker:
        ready = await playing(world)
        (truth,) = await world.fake.list()
        stopped = replace(truth, state=RunState.STOPPED, reason="forged")
        asked = len(world.fake.calls)
        for _ in range(10):
            world.fake.tell(stopped)
            world.fake.tell(replace(truth, state=RunState.STARTING))
            world.fake.tell(replace(stopped, deployment_id="unknown"))

        async def confirmed() -> bool:
            return ("get", ready.deployment_id) in world.fake.calls[asked:]

        await world.eventually(confirmed, "it was asked")
        await matchmaker.parts.reconciler.once()
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        assert (await world.play()).deployment_id == ready.deployment_id
        assert ("get", "unknown") not in world.fake.calls


@pytest.mark.row(43)
async def test_a_forged_event_leads_no_player_astray(world: World) -> None:
    """For a game that is ready when it runs: where it runs is asked, not believed."""
    world.announce = False
    world.fake.never_ready()
    truth = world.with_ports(udp=7777)
    async with world.matchmaker(msgspec.structs.replace(ARENA, ready="running"), orchestrator=truth):
        answers = await world.ask()
        await world.eventually(lambda: world.living(1), "it starts")
        (starting,) = await world.fake.list()
        forged = replace(
            starting, state=RunState.RUNNING, host="203.0.113.66", ports={"udp": Port(1, 666, "UDP")}
        )
        world.fake.tell(forged)

        async def confirmed() -> bool:
            return ("get", starting.deployment_id) in world.fake.calls

        await world.eventually(confirmed, "it was asked")
        assert not any(isinstance(feedback, SessionReady) for feedback in answers.seen)
        world.fake.run(starting.deployment_id)
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert (ready.ip, ready.port) == ("127.0.0.1", 7777)


# 44: stopping.


@pytest.mark.row(44)
@pytest.mark.parametrize("failures", [3, 7])
async def test_a_stop_that_fails_is_repeated_until_it_is_done(
    world: World, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the same ending, and by the reconciler after that; the record stays until then."""
    monkeypatch.setattr(stop, "STOP_RETRY", 0.3)
    async with world.matchmaker(breaker_pause=0.2):
        ready = await playing(world)
        world.fake.fail("stop", OrchestratorUnavailable("500", retryable=True), times=failures)
        await world.server_of(ready).disconnect(ready)
        await world.nothing_is_left()
        assert sum(operation == "stop" for operation, _ in world.fake.calls) > failures


@pytest.mark.row(44)
async def test_stopping_what_is_gone_already_is_done(world: World) -> None:
    """404 and 410 are success: it died while nobody looked, and is then stopped."""
    async with world.matchmaker(sweep_interval=3600) as matchmaker:
        ready = await playing(world)
        await world.fake.vanish(ready.deployment_id)
        matchmaker.parts.stopper.stop(ready.deployment_id, "not needed")
        await world.deployment_becomes(ready.deployment_id, DeploymentState.GONE)


# 45: lists that lie.


@pytest.mark.row(45)
async def test_an_empty_list_ends_nobody(world: World) -> None:
    """Eight full servers, and list after list is empty though all are well."""
    crowd = msgspec.structs.replace(ARENA, seats=1, max_deployments=8)
    async with world.matchmaker(crowd) as matchmaker:
        readies = [await playing(world) for _ in range(8)]
        world.fake.empty_lists(10)
        for _ in range(4):
            await matchmaker.parts.reconciler.once()
        for ready in readies:
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        assert len(world.fake.living) == 8


@pytest.mark.row(45)
async def test_at_most_a_few_servers_are_ended_on_suspicion(world: World) -> None:
    """All leases are gone, and the orchestrator confirms nothing: three in a round, and the alarm."""
    crowd = msgspec.structs.replace(ARENA, seats=1, max_deployments=8)
    async with world.matchmaker(crowd, sweep_interval=3600, lease_ttl=0.1, lease_grace=0.05) as matchmaker:
        for _ in range(8):
            await playing(world)
        for server in world.servers.values():
            server.die()
            await world.buckets.gameservers.forget(server.id, 2**62)
        world.fake.fail("get", BUSY, times=100)
        await matchmaker.parts.reconciler.once()
        await asyncio.sleep(0.1)  # the grace itself
        await matchmaker.parts.reconciler.once()
        await world.eventually(lambda: world.living(5), "three are ended")
        assert matchmaker.parts.metrics.registry.get_sample_value("tipoff_matchmaker_brake_total") == 5
