"""One start of a server, step by step, and what the starter does when a step fails or somebody else moves on."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.errors import NoRecord
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import Game
from tipoff_shared.records import DeploymentRecord, DeploymentState

READY, PLANNED, STARTING = DeploymentState.READY, DeploymentState.PLANNED, DeploymentState.STARTING
SLOW = msgspec.structs.replace(ARENA, start_timeout=60)


class Starts:
    """Starts of one fleet, and the failures that listeners hear of."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.failures: list[tuple[str, str, str]] = []
        fleet.parts.starter.subscribe(lambda game, id, exc: self.failures.append((game.name, id, str(exc))))

    async def begin(self, game: Game = SLOW, **changes: object) -> None:
        record = state_machine.planned("one", game, 1.0)
        await self.fleet.parts.deployments.create(msgspec.structs.replace(record, **changes))
        self.fleet.parts.starter.start(game, "one", ("203.0.113.7",))

    async def until_started(self) -> None:
        await self.fleet.world.eventually(lambda: self.fleet.record().state is STARTING, "it is starting")

    @property
    def going(self) -> bool:
        return self.fleet.parts.starter.is_starting("one")


@pytest.fixture
def starts(fleet: Fleet) -> Starts:
    return Starts(fleet)


async def test_a_start_goes_on_until_the_server_announces_itself(starts: Starts) -> None:
    fleet = starts.fleet
    await starts.begin()
    assert starts.going
    await starts.until_started()
    assert starts.going
    await fleet.parts.liveness.lease_changed(await fleet.says())
    await fleet.settled()
    assert not starts.going
    assert fleet.record().state is READY
    assert starts.failures == []


async def test_the_orchestrator_hears_what_the_record_and_the_game_say(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[DeploySpec] = []
    deploy = starts.fleet.world.fake.deploy

    async def listening(spec: DeploySpec) -> Deployment:
        heard.append(spec)
        return await deploy(spec)

    monkeypatch.setattr(starts.fleet.world.fake, "deploy", listening)
    await starts.begin(own_key=True)
    await starts.until_started()
    (spec,) = heard
    assert spec == DeploySpec(
        "one",
        "arena",
        "1",
        4,
        ("203.0.113.7",),
        own_key=True,
        websocket_url="",
        event_key="",
        nats_password="",
    )


async def test_servers_are_told_where_our_proxy_is(world: World) -> None:
    async with world.parts(SLOW, gs_proxy_url="wss://play.example/gs/") as parts:
        world.announce = False
        starts = Starts(Fleet(world, parts))
        heard: list[str] = []
        deploy = world.fake.deploy

        async def listening(spec: DeploySpec) -> Deployment:
            heard.append(spec.websocket_url)
            return await deploy(spec)

        world.fake.deploy = listening  # type: ignore[method-assign]
        await starts.begin()
        await starts.until_started()
        assert heard == [parts.settings.websocket_url("one")]
        assert heard[0].startswith("wss://play.example/gs/")


@pytest.mark.parametrize("state", [DeploymentState.STOPPING, DeploymentState.GONE])
async def test_a_start_that_somebody_stops_has_failed(starts: Starts, state: DeploymentState) -> None:
    await starts.begin()
    await starts.until_started()
    await starts.fleet.parts.deployments.change(
        "one", lambda record: msgspec.structs.replace(record, state=state, reason="an operator")
    )
    await starts.fleet.settled()
    assert starts.failures == [("arena", "one", "an operator")]
    assert not starts.going


async def test_a_start_that_is_stopped_without_a_reason_has_failed_all_the_same(starts: Starts) -> None:
    await starts.begin()
    await starts.until_started()
    await starts.fleet.parts.deployments.change(
        "one", lambda record: msgspec.structs.replace(record, state=DeploymentState.STOPPING)
    )
    await starts.fleet.settled()
    assert starts.failures == [("arena", "one", "it was stopped")]


async def test_a_server_that_is_seen_draining_was_ready_in_between(starts: Starts) -> None:
    await starts.begin()
    await starts.until_started()
    await starts.fleet.parts.deployments.change(
        "one", lambda record: msgspec.structs.replace(record, state=DeploymentState.DRAINING)
    )
    await starts.fleet.settled()
    assert starts.failures == []
    assert not starts.going


async def test_a_start_has_a_deadline(starts: Starts) -> None:
    await starts.begin(msgspec.structs.replace(ARENA, start_timeout=0.1))
    await starts.fleet.settled()
    assert starts.failures == [("arena", "one", "it was not ready within 0.1 s")]
    assert not starts.going


async def test_every_listener_hears_of_a_failure_and_a_start_is_over_then(starts: Starts) -> None:
    starts.fleet.world.fake.fail("deploy", NotConfigured("no such game"))
    second: list[str] = []
    starts.fleet.parts.starter.subscribe(lambda game, id, exc: second.append(id))
    await starts.begin()
    await starts.fleet.settled()
    assert starts.failures == [("arena", "one", "no such game")]
    assert second == ["one"]
    assert not starts.going


@pytest.mark.parametrize(
    ("error", "calls", "ready"),
    [
        (OrchestratorUnavailable("away", retryable=True), 2, True),
        (NoCapacity("full", retryable=True), 1, False),
        (OrchestratorError("broken", retryable=False), 1, False),
    ],
)
async def test_deploy_is_tried_again_where_that_may_help(
    starts: Starts, error: OrchestratorError, calls: int, ready: bool
) -> None:
    starts.fleet.world.fake.fail("deploy", error)
    await starts.begin()
    if ready:
        await starts.until_started()
    else:
        await starts.fleet.settled()
    assert starts.fleet.asked("deploy") == calls
    assert bool(starts.failures) is not ready


@pytest.mark.parametrize(("tries", "failures", "ready"), [(2, 1, True), (2, 2, False)])
async def test_deploy_is_tried_as_often_as_the_settings_say(
    world: World, tries: int, failures: int, ready: bool
) -> None:
    world.announce = False
    async with world.parts(SLOW, deploy_tries=tries, breaker_failures=50) as parts:
        starts = Starts(Fleet(world, parts))
        world.fake.fail("deploy", OrchestratorUnavailable("away", retryable=True), times=failures)
        await starts.begin()
        if ready:
            await starts.until_started()
        else:
            await starts.fleet.settled()
        assert starts.fleet.asked("deploy") == 2
        assert bool(starts.failures) is not ready


async def test_a_game_of_an_orchestrator_that_is_not_there_cannot_start(starts: Starts) -> None:
    await starts.begin(msgspec.structs.replace(SLOW, orchestrator="elsewhere"))
    await starts.fleet.settled()
    ((_, _, text),) = starts.failures
    assert "elsewhere" in text


@pytest.mark.parametrize(("reason", "text"), [("", "it ended at once"), ("no such image", "no such image")])
async def test_a_server_that_ended_at_once_has_failed(
    starts: Starts, monkeypatch: pytest.MonkeyPatch, reason: str, text: str
) -> None:
    async def stopped(spec: DeploySpec) -> Deployment:
        return Deployment(spec.deployment_id, "arena", "1", RunState.STOPPED, native_id="n", reason=reason)

    monkeypatch.setattr(starts.fleet.world.fake, "deploy", stopped)
    await starts.begin()
    await starts.fleet.settled()
    assert starts.failures == [("arena", "one", text)]


async def test_what_deploy_says_of_its_place_is_written_down(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def placed(spec: DeploySpec) -> Deployment:
        return Deployment(
            "one", "arena", "1", RunState.STARTING, native_id="n", proxy="10.0.0.7:80", digest_key="d",
            reason="fetching the image",
        )  # fmt: skip

    monkeypatch.setattr(starts.fleet.world.fake, "deploy", placed)
    await starts.begin(own_key=True)
    await starts.until_started()
    record = await starts.fleet.written()
    assert (record.proxy, record.digest_key, record.own_key) == ("10.0.0.7:80", "d", False)
    await starts.fleet.world.eventually(
        lambda: starts.fleet.parts.starter.doing([record]) == "fetching the image", "players are told"
    )


async def test_a_start_that_cannot_be_written_down_goes_on(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployments = starts.fleet.parts.deployments
    change = deployments.change

    def away(*_: object) -> asyncio.Future[DeploymentRecord]:
        monkeypatch.setattr(deployments, "change", change)
        future: asyncio.Future[DeploymentRecord] = asyncio.get_running_loop().create_future()
        future.set_exception(Unavailable("NATS is away"))
        return future

    monkeypatch.setattr(deployments, "change", away)
    await starts.begin()
    await starts.fleet.world.eventually(lambda: deployments.change == change, "it was tried")
    assert starts.going
    await starts.fleet.parts.liveness.lease_changed(await starts.fleet.says())
    await starts.fleet.settled()
    assert starts.failures == []
    assert starts.fleet.record().state is READY


async def test_a_start_whose_record_is_gone_is_no_failure(
    starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another matchmaker has stopped it."""

    def gone(*_: object) -> asyncio.Future[DeploymentRecord]:
        future: asyncio.Future[DeploymentRecord] = asyncio.get_running_loop().create_future()
        future.set_exception(NoRecord("it has no record"))
        return future

    monkeypatch.setattr(starts.fleet.parts.deployments, "change", gone)
    await starts.begin()
    await starts.fleet.settled()
    assert starts.failures == []
    assert not starts.going


@pytest.mark.parametrize("away", [False, True])
async def test_a_server_that_runs_at_once_is_ready_where_that_is_enough(
    running: Fleet, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    starts = Starts(running)
    game = msgspec.structs.replace(SLOW, ready="running")
    await running.world.fake.deploy(DeploySpec("one", "arena", "1", 4))
    running.world.fake.run("one")
    if away:
        runs = running.parts.readiness.runs

        async def not_now(*_: object) -> None:
            monkeypatch.setattr(running.parts.readiness, "runs", runs)
            raise Unavailable("NATS is away")

        monkeypatch.setattr(running.parts.readiness, "runs", not_now)
    await starts.begin(game)
    if away:
        await running.world.eventually(lambda: running.parts.readiness.runs == runs, "it was tried")
        assert starts.going, "the reconciler makes it ready"
        running.parts.liveness.confirm("one", "the reconciler")
    await running.settled()
    assert running.record().state is READY
    assert starts.failures == []


async def test_a_server_that_runs_is_not_ready_where_it_announces_itself(fleet: Fleet) -> None:
    starts = Starts(fleet)
    await fleet.world.fake.deploy(DeploySpec("one", "arena", "1", 4))
    fleet.world.fake.run("one")
    await starts.begin()
    await starts.until_started()
    assert starts.going


# What starts that take long are doing.


async def test_progress_is_told_once_and_ends_with_the_start(starts: Starts) -> None:
    fleet, starter = starts.fleet, starts.fleet.parts.starter
    await starts.begin()
    await starts.until_started()
    told: list[str] = []
    fleet.parts.lines[ARENA.key].announce = lambda: told.append(starter.doing([fleet.record()]))  # type: ignore[method-assign]
    starter.progress("one", "fetching\nthe image\x07")
    starter.progress("one", "fetching\nthe image\x07")
    starter.progress("one", "starting")
    starter.progress("unknown", "starting")
    assert told == ["fetching the image", "starting"]
    starter.progress("one", "")
    assert starter.doing([fleet.record()]) == ""
    starter.progress("one", "starting")
    coming = fleet.record()
    await fleet.parts.liveness.lease_changed(await fleet.says())
    assert starter.doing([coming]) == ""
    starter.progress("one", "late")
    assert starter.doing([coming]) == "", "it is ready"


async def test_the_first_start_that_says_something_is_told(fleet: Fleet) -> None:
    fleet.world.fake.never_ready(2)
    await fleet.server(STARTING, id="quiet", deadline=9e9)
    await fleet.server(STARTING, id="one", deadline=9e9)
    fleet.parts.starter.progress("one", "fetching the image")
    records = [fleet.record("quiet"), fleet.record("one")]
    assert fleet.parts.starter.doing(records) == "fetching the image"
    assert fleet.parts.starter.doing(records[:1]) == ""


async def test_a_start_that_makes_progress_gets_time(world: World) -> None:
    """Its own deadline and that of its record, before which others stop it; the record's is written seldom."""
    world.announce = False
    now = 1000.0
    async with world.parts(msgspec.structs.replace(ARENA, start_timeout=0.4), clock=lambda: now) as parts:
        starts = Starts(Fleet(world, parts))
        game = msgspec.structs.replace(ARENA, start_timeout=0.4)
        await starts.begin(game, deadline=now + 0.1)
        await starts.until_started()
        for number in range(4):
            await asyncio.sleep(0.15)  # time is what is measured
            parts.starter.progress("one", f"{number} of 4")
        assert starts.going
        assert starts.failures == []
        assert starts.fleet.record().deadline == now + 0.4
        await starts.fleet.settled()
        assert starts.failures == [("arena", "one", "it was not ready within 0.4 s")]


@pytest.mark.parametrize(("left", "written"), [(31.0, False), (29.0, True)])
async def test_the_records_deadline_is_written_when_half_of_it_has_passed(
    world: World, left: float, written: bool
) -> None:
    world.announce = False
    async with world.parts(SLOW, clock=lambda: 1000.0) as parts:
        starts = Starts(Fleet(world, parts))
        await starts.begin(deadline=1000.0 + left)
        await starts.until_started()
        parts.starter.progress("one", "fetching the image")
        await world.eventually(
            lambda: starts.fleet.record().deadline == 1060.0 or not written, "it is written"
        )
        assert (starts.fleet.record().deadline == 1060.0) is written


async def test_nobody_fails_while_servers_are_not_heard(world: World) -> None:
    """Nor before they had the time to say that they are ready: two TTLs of a lease."""
    world.announce = False
    async with world.parts(lease_ttl=0.3) as parts:
        starts = Starts(Fleet(world, parts))
        loop = asyncio.get_running_loop()
        await starts.begin(msgspec.structs.replace(ARENA, start_timeout=0.2))
        await starts.until_started()
        began = loop.time()
        parts.hearing.disturbed("the stream is full")
        await starts.fleet.settled()
        assert starts.failures == [("arena", "one", "it was not ready within 0.2 s")]
        assert loop.time() - began > 0.5
