"""What every orchestrator promises; the fake, the launcher (real NATS, real processes, real containers) and Edgegap (on
the emulator, with real processes) alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.docker_engine import docker
from tests.orchestrator.launcher_world import Eventually, LauncherWorld, Spec
from tipoff_edgegap_emulator import Options, Rules, running_emulator
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NotConfigured,
    Orchestrator,
    RunState,
)
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.orchestrator import EdgegapOrchestrator
from tipoff_orchestrator_client.edgegap.settings import Settings as EdgegapSettings
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import EdgegapSpec, Games
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import connect
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings


@dataclass
class World:
    """An orchestrator, a look at what it really runs, and a twin in another namespace."""

    orchestrator: Orchestrator
    running: Callable[[str], int]
    said: Callable[[str], str]
    stranger: Orchestrator
    knows_exit_codes: bool = True
    stops_at_once: bool = True
    """Else its `stop` returns when it is certain that the server ends."""

    async def has_ended(self, id: str, eventually: Eventually) -> None:
        if not self.stops_at_once:
            await eventually(lambda: self.running(id) == 0, timeout=8)
        assert self.running(id) == 0


DOCKER = pytest.param("docker", marks=[pytest.mark.slow, pytest.mark.docker])


@asynccontextmanager
async def edgegap(games: Games, settings: NatsSettings, tmp_path: Path) -> AsyncIterator[World]:
    """The emulator with one account, and two namespaces that share it."""
    at_edgegap = {
        game.key: msgspec.structs.replace(game, edgegap=EdgegapSpec(game.name, game.version))
        for game in games.all()
    }
    games = Games(at_edgegap, {key: games.private_key(game) for key, game in at_edgegap.items()}, games.base)
    elsewhere = replace(settings, namespace=f"{settings.namespace}-b")
    logs = tmp_path / "edgegap"
    async with AsyncExitStack() as stack:
        options = Options(rules=Rules(start_delay=0))
        emulator = await stack.enter_async_context(running_emulator(games, options, logs=logs))
        for version in emulator.state.catalogue.versions.values():
            version["termination_grace_period_seconds"] = 0.4
        quick = EdgegapSettings(url=emulator.url, poll_first=0.05, poll_slowest=0.2, pass_nats=False)
        opened: list[EdgegapOrchestrator] = []
        for nats in (settings, elsewhere):
            bus = await stack.enter_async_context(connect(nats, name="test"))
            await create_buckets(bus)
            client = await stack.enter_async_context(EdgegapClient(emulator.url, Secret(emulator.token)))
            opened.append(EdgegapOrchestrator(client, bus, games, quick))
            stack.push_async_callback(opened[-1].close)

        def native(id: str) -> list[str]:
            known = emulator.state.deployments.values()
            return [one.request_id for one in known if f"id-{id}" in one.tags]

        def said(id: str) -> str:
            files = [logs / f"{request_id}.log" for request_id in native(id)]
            return "".join(file.read_text() for file in files if file.exists())

        yield World(
            opened[0],
            lambda id: len(set(native(id)) & set(emulator.fleet.running)),
            said,
            opened[1],
            knows_exit_codes=False,
            stops_at_once=False,
        )
        assert emulator.problems == []


@pytest.fixture(params=["fake", "launcher", "edgegap", DOCKER])
async def world(
    request: pytest.FixtureRequest,
    settings: NatsSettings,
    launchers: LauncherWorld,
    tmp_path: Path,
) -> AsyncIterator[World]:
    if request.param == "fake":
        games = [(name, "1") for name in ("sleeper", "stubborn", "crash")]

        async def crash(spec: DeploySpec) -> None:
            if spec.game == "crash":
                await fake.kill(spec.deployment_id, "exited with code 3")

        fake = FakeOrchestrator(games=games, on_start=crash)
        yield World(fake, lambda id: fake.living.count(id), lambda id: "ready", FakeOrchestrator())
        await fake.close()
        return
    if request.param == "edgegap":
        async with edgegap(launchers.games, settings, tmp_path) as world:
            yield world
        return
    elsewhere = replace(settings, namespace=f"{settings.namespace}-b")
    if request.param == "docker":
        start: Callable[..., Any] = launchers.start_docker

        def running(id: str) -> int:
            return len(launchers.containers(id))

        def said(id: str) -> str:
            return "".join(docker("logs", container) for container in launchers.containers(id))
    else:
        start = launchers.start

        def running(id: str) -> int:
            return len(launchers.servers(id))

        def said(id: str) -> str:
            return launchers.log_of(id)

    async with (
        start(),
        connect(settings, name="test") as bus,
        connect(elsewhere, name="test") as other_bus,
        start(state_dir=tmp_path / "elsewhere", nats=elsewhere),
    ):
        orchestrator = LauncherOrchestrator(bus)
        yield World(orchestrator, running, said, LauncherOrchestrator(other_bus))
        await orchestrator.close()


@pytest.fixture
async def listening(world: World, spec: Spec, eventually: Eventually) -> AsyncIterator[list[Deployment]]:
    """The events from now on. That one listens shows by the events of a server that is only there for this."""
    heard: list[Deployment] = []

    async def listen() -> None:
        async for event in world.orchestrator.events():
            heard.append(event)  # noqa: PERF401 # read while it grows

    task = asyncio.create_task(listen())
    attempt = 0

    async def heard_something() -> bool:
        nonlocal attempt
        attempt += 1
        await world.orchestrator.deploy(spec(id=f"probe-{attempt}"))
        return bool(heard)

    await eventually(heard_something)
    for number in range(1, attempt + 1):
        await world.orchestrator.stop(f"probe-{number}")
    yield heard
    task.cancel()
    await asyncio.wait([task])


async def test_it_is_an_orchestrator(world: World) -> None:
    """Every method of the interface is there."""
    assert isinstance(world.orchestrator, Orchestrator)


async def test_deploy_starts_a_server_that_get_and_list_know(
    world: World, spec: Spec, eventually: Eventually
) -> None:
    """What has been deployed runs, under its own name."""
    wanted = spec()
    deployment = await world.orchestrator.deploy(wanted)
    assert (deployment.deployment_id, deployment.game, deployment.version) == (
        wanted.deployment_id,
        "sleeper",
        "1",
    )

    async def runs() -> bool:
        known = await world.orchestrator.get(wanted.deployment_id)
        return known is not None and known.state is RunState.RUNNING

    await eventually(runs)
    assert [known.deployment_id for known in await world.orchestrator.list()] == [wanted.deployment_id]
    await eventually(lambda: world.running(wanted.deployment_id) == 1)


async def test_twenty_deploys_of_one_id_at_once_start_one_server(
    world: World, spec: Spec, eventually: Eventually
) -> None:
    """Deploy is idempotent in the deployment id, also when repeats overtake each other."""
    wanted = spec()
    answers = await asyncio.gather(*(world.orchestrator.deploy(wanted) for _ in range(20)))
    assert len({answer.native_id for answer in answers}) == 1
    assert len(await world.orchestrator.list()) == 1
    await eventually(lambda: world.running(wanted.deployment_id) == 1)


async def test_a_server_that_was_stopped_is_not_started_again_by_a_late_deploy(
    world: World, spec: Spec, eventually: Eventually
) -> None:
    """The id is used up: a repeat of its deploy finds the stopped server."""
    wanted = spec()
    await world.orchestrator.deploy(wanted)
    await world.orchestrator.stop(wanted.deployment_id)
    again = await world.orchestrator.deploy(wanted)
    assert again.state is RunState.STOPPED
    await world.has_ended(wanted.deployment_id, eventually)


@pytest.mark.row(38)
async def test_a_deploy_that_arrives_after_its_stop_starts_nothing(world: World, spec: Spec) -> None:
    """Messages may overtake each other; stop has the last word."""
    wanted = spec()
    await world.orchestrator.stop(wanted.deployment_id)
    assert (await world.orchestrator.deploy(wanted)).state is RunState.STOPPED
    assert await world.orchestrator.list() == []


@pytest.mark.row(44)
async def test_stop_ends_the_server_and_may_be_repeated(
    world: World, spec: Spec, eventually: Eventually
) -> None:
    """After stop nothing of it runs, and stopping what is gone is success."""
    wanted = spec()
    await world.orchestrator.deploy(wanted)
    await asyncio.gather(*(world.orchestrator.stop(wanted.deployment_id) for _ in range(5)))
    await world.orchestrator.stop(wanted.deployment_id)
    assert await world.orchestrator.list() == []
    await world.has_ended(wanted.deployment_id, eventually)
    known = await world.orchestrator.get(wanted.deployment_id)
    assert known is None or known.state is RunState.STOPPED


async def test_a_server_that_ignores_the_polite_request_is_stopped_by_force(
    world: World, spec: Spec, eventually: Eventually
) -> None:
    """SIGTERM is a request, not a hope."""
    wanted = spec("stubborn")
    await world.orchestrator.deploy(wanted)
    await eventually(lambda: "ready" in world.said(wanted.deployment_id))
    await world.orchestrator.stop(wanted.deployment_id)
    await world.has_ended(wanted.deployment_id, eventually)


@pytest.mark.row(44)
async def test_unknown_ids_are_nothing(world: World) -> None:
    """Get answers None, stop is content."""
    assert await world.orchestrator.get("nobody-1") is None
    await world.orchestrator.stop("nobody-1")


async def test_an_unknown_game_or_version_is_not_configured(world: World, spec: Spec) -> None:
    """Retrying does not help, and nothing was started."""
    for wanted in (spec("chess"), spec("sleeper", "2")):
        with pytest.raises(NotConfigured) as caught:
            await world.orchestrator.deploy(wanted)
        assert not caught.value.retryable
        assert not caught.value.may_have_started
    assert await world.orchestrator.list() == []


async def test_events_tell_start_and_stop(
    world: World, spec: Spec, listening: list[Deployment], eventually: Eventually
) -> None:
    """A listener hears of both, in this order."""
    wanted = spec()
    await world.orchestrator.deploy(wanted)

    def heard() -> list[RunState]:
        return [event.state for event in listening if event.deployment_id == wanted.deployment_id]

    await eventually(lambda: heard() == [RunState.RUNNING])
    await world.orchestrator.stop(wanted.deployment_id)
    await eventually(lambda: heard() == [RunState.RUNNING, RunState.STOPPED])


async def test_a_server_that_dies_is_told_at_once_with_its_exit_code(
    world: World, spec: Spec, listening: list[Deployment], eventually: Eventually
) -> None:
    """Nobody has to look: the event says that it is gone, and why."""
    wanted = spec("crash")
    await world.orchestrator.deploy(wanted)

    async def told() -> bool:
        if not world.knows_exit_codes:
            await world.orchestrator.list()  # as the reconciler does all the time
        return any(
            event.deployment_id == wanted.deployment_id
            and event.state is RunState.STOPPED
            and ("code 3" in event.reason or not world.knows_exit_codes)
            for event in listening
        )

    await eventually(told, timeout=2)
    assert wanted.deployment_id not in [known.deployment_id for known in await world.orchestrator.list()]


async def test_list_carries_only_our_namespace(world: World, spec: Spec) -> None:
    """Two namespaces never see each other's servers."""
    ours, theirs = spec(), spec()
    await world.orchestrator.deploy(ours)
    await world.stranger.deploy(theirs)
    assert [known.deployment_id for known in await world.orchestrator.list()] == [ours.deployment_id]
    assert [known.deployment_id for known in await world.stranger.list()] == [theirs.deployment_id]
    assert await world.orchestrator.get(theirs.deployment_id) is None


async def test_close_stops_no_server_and_may_be_repeated(world: World, spec: Spec) -> None:
    """The orchestrator's user may go away; the servers run on."""
    wanted = spec()
    await world.orchestrator.deploy(wanted)
    await world.orchestrator.close()
    await world.orchestrator.close()
    assert len(await world.orchestrator.list()) == 1


async def test_close_ends_the_events(world: World, spec: Spec, eventually: Eventually) -> None:
    """A listener's loop ends by itself."""
    ended = asyncio.Event()

    async def listen() -> None:
        async for _ in world.orchestrator.events():
            pass
        ended.set()

    task = asyncio.create_task(listen())

    async def closed() -> bool:
        await world.orchestrator.close()
        return ended.is_set()

    await eventually(closed)
    await task
