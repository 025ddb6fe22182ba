"""The stop of one server: each step may fail, be repeated, or be another matchmaker's."""

from __future__ import annotations

import time

import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.deployments.fleet_limit import FleetLimit
from tipoff_matchmaker.fleet.stop import STOP_RETRY
from tipoff_orchestrator_client.base import OrchestratorError, OrchestratorUnavailable
from tipoff_shared.games import GameKey
from tipoff_shared.records import DeploymentState, SessionState

READY, DRAINING, STOPPING, GONE = (
    DeploymentState.READY,
    DeploymentState.DRAINING,
    DeploymentState.STOPPING,
    DeploymentState.GONE,
)


@pytest.mark.parametrize("confirmed_gone", [False, True])
async def test_a_stop_ends_sessions_and_gives_everything_back(fleet: Fleet, confirmed_gone: bool) -> None:
    heard: list[GameKey] = []
    fleet.parts.stopper.subscribe(heard.append)
    await fleet.server(seats={"s": 9e9})
    await fleet.session("s", SessionState.ACTIVE)
    await fleet.world.buckets.active_connections.put("s", "7")
    limit = FleetLimit(fleet.world.buckets.fleets)
    await limit.restore("arena", "1", "one", 1.0)
    await limit.restore("arena", "1", "other", 1.0)
    fleet.parts.stopper.stop("one", "enough", confirmed_gone=confirmed_gone)
    fleet.parts.stopper.stop("one", "twice")
    assert fleet.parts.stopper.is_stopping("one")
    await fleet.settled()
    assert not fleet.parts.stopper.is_stopping("one")
    record = await fleet.written()
    assert (record.state, record.reason, record.seats) == (GONE, "enough", {})
    session = await fleet.world.session("s")
    assert session is None or session.state in (SessionState.CLOSING, SessionState.GONE)
    assert await fleet.world.buckets.active_connections.get("s") is None
    assert fleet.asked("stop") == (0 if confirmed_gone else 1)
    assert list((await limit.read("arena", "1")).deployments) == ["other"]
    assert heard == [ARENA.key]


async def test_an_orchestrator_that_does_not_stop_it_is_asked_again_later(fleet: Fleet) -> None:
    """The sessions end all the same; the record says until when nobody else tries."""
    heard: list[GameKey] = []
    fleet.parts.stopper.subscribe(heard.append)
    await fleet.server(seats={"s": 9e9})
    await fleet.session("s", SessionState.ACTIVE)
    fleet.world.fake.fail("stop", OrchestratorError("it refuses", retryable=False))
    fleet.parts.stopper.stop("one", "enough")
    await fleet.settled()
    record = await fleet.written()
    assert record.state is STOPPING
    assert record.deadline == pytest.approx(time.time() + STOP_RETRY, abs=5)
    session = await fleet.world.session("s")
    assert session is None or session.state in (SessionState.CLOSING, SessionState.GONE)
    assert heard == [ARENA.key], "the planner may go on"
    fleet.parts.stopper.stop("one", "once more")
    await fleet.settled()
    assert (await fleet.written()).state is GONE


@pytest.mark.parametrize(("failures", "state"), [(1, GONE), (4, GONE), (5, STOPPING)])
async def test_a_stop_is_tried_as_often_as_the_settings_say(
    world: World, failures: int, state: DeploymentState
) -> None:
    async with world.parts(ARENA, deploy_tries=5, breaker_failures=50, backoff=0.001) as parts:
        fleet = Fleet(world, parts)
        world.announce = False
        await fleet.server()
        world.fake.fail("stop", OrchestratorUnavailable("away", retryable=True), times=failures)
        parts.stopper.stop("one", "enough")
        await fleet.settled()
        assert (await fleet.written()).state is state
        assert fleet.asked("stop") == min(failures + 1, 5)


async def test_a_server_of_an_orchestrator_that_is_not_there_stays_to_be_stopped(fleet: Fleet) -> None:
    await fleet.server(orchestrator="elsewhere")
    fleet.parts.stopper.stop("one", "enough")
    await fleet.settled()
    assert (await fleet.written()).state is STOPPING
    assert fleet.asked("stop") == 0


async def test_what_another_matchmaker_has_stopped_is_no_error(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[GameKey] = []
    fleet.parts.stopper.subscribe(heard.append)
    fleet.parts.stopper.stop("unknown", "enough")
    await fleet.settled()
    assert fleet.asked("stop") == 0
    assert heard == [], "whose game it was is not known"
    assert "failed" not in caplog.text
    assert "could not be stopped" not in caplog.text


async def test_a_server_drains_until_its_last_player_has_left(fleet: Fleet) -> None:
    await fleet.server(seats={"s": 9e9})
    await fleet.server(id="empty")
    await fleet.parts.stopper.drain("one", "a new version")
    await fleet.parts.stopper.drain("empty", "a new version")
    await fleet.parts.stopper.drain("unknown", "a new version")
    await fleet.settled()
    record = await fleet.written()
    assert (record.state, record.reason, list(record.seats)) == (DRAINING, "a new version", ["s"])
    assert (await fleet.written("empty")).state is GONE


@pytest.mark.parametrize("state", [DeploymentState.STARTING, STOPPING])
async def test_only_a_ready_server_drains(fleet: Fleet, state: DeploymentState) -> None:
    await fleet.server(state, deadline=9e9)
    await fleet.parts.stopper.drain("one", "a new version")
    await fleet.settled()
    assert (await fleet.written()).state is state
