"""Launchers and engines that stop and return: which servers run on, which are reported as ended; nothing is left."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docker_engine import docker, socket_path
from tests.orchestrator.launcher_world import KEY, LauncherWorld, Spec, docker_game, lease
from tests.orchestrator.own_engine import Link, SlowRegistry, link_to, own_engine
from tests.polling import eventually
from tipoff_launcher.backends.docker.container_config import owner_labels
from tipoff_launcher.records import Record, Records
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NotConfigured,
    OrchestratorError,
    RunState,
)
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.games import Games
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus

pytestmark = [pytest.mark.slow, pytest.mark.docker]


def launcher_labels(namespace: str, owner: str = "") -> list[str]:
    return [f"{name}={value}" for name, value in owner_labels(namespace, "local", owner).items()]


@pytest.fixture
def client(nats: Bus) -> LauncherOrchestrator:
    return LauncherOrchestrator(nats, deploy_deadline=30)


@pytest.fixture
async def link() -> AsyncIterator[Link]:
    """A connection to the engine that can be cut."""
    with tempfile.TemporaryDirectory(prefix="tipoff-link-") as directory:
        async with link_to(socket_path(), Path(directory)) as link:
            yield link


# The launcher restarts.


async def runs(launchers: LauncherWorld, wanted: DeploySpec) -> None:
    """Wait until the launcher says that it runs."""

    async def running() -> bool:
        return await launchers.state_of(wanted) is RunState.RUNNING

    await eventually(running, "it runs", 20)


async def test_containers_with_a_lease_are_adopted_and_others_stopped(
    launchers: LauncherWorld, client: LauncherOrchestrator, kv: Buckets, spec: Spec
) -> None:
    """The next launcher knows all servers, and stops those without a lease after the grace."""
    plays, idle, died = spec(), spec(), spec()
    async with launchers.start_docker(stop_servers_on_exit=False):
        before = [await client.deploy(each) for each in (plays, idle, died)]
        await kv.gameservers.put(plays.deployment_id, lease(plays), ttl=60)
    docker("kill", *launchers.containers(died.deployment_id))
    async with launchers.start_docker():
        known = await client.get(plays.deployment_id)
        assert known == before[0]
        assert (await client.deploy(plays)).native_id == before[0].native_id
        await eventually(lambda: launchers.is_stopped(died), timeout=10)
        gone = await client.get(died.deployment_id)
        assert gone is not None
        assert "SIGKILL" in gone.reason  # the engine still knew how it had ended
        await eventually(lambda: launchers.is_stopped(idle), timeout=15)
        assert launchers.containers(idle.deployment_id, all=True) == []
        assert await launchers.state_of(plays) is RunState.RUNNING
        await client.stop(plays.deployment_id)
        assert launchers.containers(plays.deployment_id, all=True) == []


async def test_a_launcher_that_lost_its_records_knows_its_servers_by_their_labels(
    launchers: LauncherWorld,
    client: LauncherOrchestrator,
    kv: Buckets,
    spec: Spec,
    namespace: str,
    tmp_path: Path,
) -> None:
    """As for a launcher in a container without a volume: servers are adopted; orphans that never ran are removed."""
    plays, idle = spec(), spec()
    async with launchers.start_docker(stop_servers_on_exit=False):
        before = await client.deploy(plays)
        await client.deploy(idle)
        await kv.gameservers.put(plays.deployment_id, lease(plays), ttl=60)
    marks = [*launcher_labels(namespace), "tipoff.deployment=never-ran-1"]
    docker("create", *[part for mark in marks for part in ("--label", mark)], "python:3.13-slim", "true")
    async with launchers.start_docker(state_dir=tmp_path / "new"):
        assert launchers.containers("never-ran-1", all=True) == []
        assert await client.get(plays.deployment_id) == before
        await eventually(lambda: launchers.is_stopped(idle), timeout=15)
        assert await launchers.state_of(plays) is RunState.RUNNING
        await client.stop(plays.deployment_id)
    assert launchers.containers(plays.deployment_id, all=True) == []


async def test_containers_of_another_system_on_the_same_engine_are_left_alone(
    launchers: LauncherWorld, namespace: str
) -> None:
    """Namespace and launcher name are the same: only the owner differs."""
    for owner in ("theirs", "ours"):
        marks = [*launcher_labels(namespace, owner), f"tipoff.deployment=of-{owner}-1"]
        docker("create", *[part for mark in marks for part in ("--label", mark)], "python:3.13-slim", "true")
    async with launchers.start_docker(docker_owner="ours"):
        assert launchers.containers("of-ours-1", all=True) == []
        assert len(launchers.containers("of-theirs-1", all=True)) == 1


async def test_a_crash_before_the_container_ran_leaves_the_id_free(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, namespace: str
) -> None:
    """A container that was created but not recorded is removed, and repeating the deploy starts another."""
    wanted = spec()
    records = Records(launchers.settings.state_dir)
    records.save(
        Record(wanted.deployment_id, namespace, "sleeper", "1", RunState.STARTING, "docker", created_at=0)
    )
    name = f"tipoff-{namespace}-{wanted.deployment_id}"
    marks = [*launcher_labels(namespace), f"tipoff.deployment={wanted.deployment_id}"]
    left = docker(
        "create", "--name", name, *[p for m in marks for p in ("--label", m)], "python:3.13-slim", "true"
    )
    async with launchers.start_docker():
        assert left not in launchers.containers(wanted.deployment_id, all=True)
        await client.deploy(wanted)
        assert len(launchers.containers(wanted.deployment_id, all=True)) == 1


async def test_a_launcher_says_what_its_engine_lacks(launchers: LauncherWorld, tmp_path: Path) -> None:
    """A missing engine or network is an error at the start that names the setting."""
    with pytest.raises(Unavailable, match="TIPOFF_LAUNCHER_DOCKER_HOST"):
        async with launchers.start_docker(docker_host=f"unix://{tmp_path}/none.sock", docker_wait=0.1):
            pass
    with pytest.raises(ConfigError, match="TIPOFF_LAUNCHER_DOCKER_NETWORK"):
        async with launchers.start_docker(docker_network="no-such-network"):
            pass


# The engine is away.


async def test_while_the_engine_is_away_nobody_is_told_to_have_ended(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, link: Link
) -> None:
    """Starts and stops raise typed errors; afterwards ends are reported, and the other servers run on."""
    plays, dies, late = spec(), spec(), spec()
    async with launchers.start_docker(docker_host=link.host):
        for each in (plays, dies):
            await client.deploy(each)
        await link.cut()
        with pytest.raises(OrchestratorError) as caught:
            await client.deploy(late)
        assert caught.value.retryable
        docker("kill", *launchers.containers(dies.deployment_id))
        with pytest.raises(OrchestratorError) as caught:
            await client.stop(dies.deployment_id)
        assert caught.value.retryable
        assert await launchers.state_of(dies) is RunState.RUNNING  # its end is not known yet
        assert await launchers.state_of(plays) is RunState.RUNNING
        await link.restore()
        await eventually(lambda: launchers.is_stopped(dies), timeout=15)
        assert await launchers.state_of(plays) is RunState.RUNNING
        assert (await client.deploy(late)).state is RunState.RUNNING
        assert launchers.containers(dies.deployment_id, all=True) == []


@pytest.fixture
def tiny_games(tmp_path: Path) -> Callable[[str], Games]:
    def make(image: str) -> Games:
        game = docker_game("sleeper", "exec sleep 300", image=image, start_timeout=30)
        return Games({game.key: game}, {game.key: KEY}, tmp_path)

    return make


async def test_an_engine_that_is_restarted_with_live_restore_ends_nobodys_game(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, tiny_games: Any
) -> None:
    """The containers run on; the launcher still knows them and can stop them."""
    with own_engine("--live-restore") as engine:
        games = tiny_games(engine.image)
        async with launchers.start_docker(
            games, docker_host=engine.host, docker_network="host", docker_init=False
        ):
            wanted = spec()
            before = await client.deploy(wanted)
            await asyncio.to_thread(engine.stop)
            assert await client.get(wanted.deployment_id) == before
            await asyncio.to_thread(engine.start)
            another = spec()

            async def starts() -> bool:
                try:
                    return (await client.deploy(another)).state is RunState.RUNNING
                except OrchestratorError:
                    return False

            await eventually(starts, timeout=20)
            assert await client.get(wanted.deployment_id) == before
            assert len(engine.docker("ps", "-q").stdout.split()) == 2
            await client.stop(wanted.deployment_id)
            assert len(engine.docker("ps", "-aq").stdout.split()) == 1


async def test_servers_that_ended_with_their_engine_are_told_when_it_is_back(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, tiny_games: Any
) -> None:
    """Without live-restore an engine stops its containers; it may report that before it ends. Nothing is left."""
    with own_engine() as engine:
        games = tiny_games(engine.image)
        async with launchers.start_docker(games, docker_host=engine.host, docker_network="host"):
            wanted = spec()
            await client.deploy(wanted)
            await asyncio.to_thread(engine.stop)
            await asyncio.to_thread(engine.start)
            await eventually(lambda: launchers.is_stopped(wanted), timeout=20)
            await eventually(lambda: engine.docker("ps", "-aq").stdout == "")


# Images.


@pytest.fixture
async def registry() -> AsyncIterator[SlowRegistry]:
    async with SlowRegistry(padding=3_000_000, pause=0.08).serving() as registry:
        yield registry
        docker("rmi", "-f", registry.image, check=False)


async def test_whoever_waits_for_an_image_is_told_how_far_it_is(
    launchers: LauncherWorld,
    client: LauncherOrchestrator,
    spec: Spec,
    tiny_games: Any,
    registry: SlowRegistry,
) -> None:
    """`deploy` returns `STARTING` at once; events report the progress, then that the server runs."""
    heard: list[Deployment] = []

    async def listen() -> None:
        async for event in client.events():
            heard.append(event)  # noqa: PERF401 # read while it grows

    task = asyncio.create_task(listen())
    games = tiny_games(registry.image)
    async with launchers.start_docker(
        games, docker_pull="missing", docker_pull_at_start=False, docker_init=False
    ):
        wanted = spec()
        first = await client.deploy(wanted)
        assert first.state is RunState.STARTING
        assert first.reason.startswith("Fetching the game server's image")

        def running() -> bool:
            return any(event.state is RunState.RUNNING for event in heard)

        await eventually(running, timeout=20)
        told = [event.reason for event in heard if event.state is RunState.STARTING]
        assert any(" of 3 MB" in text or " of 4 MB" in text for text in told), told
        known = await client.get(wanted.deployment_id)
        assert known is not None
        assert (known.state, known.reason) == (RunState.RUNNING, "")
        assert (await client.deploy(spec())).state is RunState.RUNNING  # the image is present now
    task.cancel()
    await asyncio.wait([task])


async def test_a_server_can_be_stopped_while_its_image_is_on_the_way(
    launchers: LauncherWorld,
    client: LauncherOrchestrator,
    spec: Spec,
    tiny_games: Any,
    registry: SlowRegistry,
) -> None:
    """It never runs; the image is still fetched, for the next server."""
    games = tiny_games(registry.image)
    async with launchers.start_docker(
        games, docker_pull="missing", docker_pull_at_start=False, docker_init=False
    ):
        wanted = spec()
        assert (await client.deploy(wanted)).state is RunState.STARTING
        await client.stop(wanted.deployment_id)
        known = await client.get(wanted.deployment_id)
        assert known is not None
        assert (known.state, known.reason) == (RunState.STOPPED, "stopped before it started")
        next_one = spec()
        await client.deploy(next_one)
        await runs(launchers, next_one)
        assert launchers.containers(wanted.deployment_id, all=True) == []


async def test_an_image_that_no_registry_has_is_not_configured(
    launchers: LauncherWorld,
    client: LauncherOrchestrator,
    spec: Spec,
    tiny_games: Any,
    registry: SlowRegistry,
) -> None:
    """Retrying would not help, and the error names the image."""
    image = registry.image.replace(":1", ":2")
    async with launchers.start_docker(tiny_games(image), docker_pull="missing"):
        with pytest.raises(NotConfigured, match="game:2"):
            await client.deploy(spec())


async def test_a_private_registry_is_entered_with_what_docker_login_wrote(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, tiny_games: Any, tmp_path: Path
) -> None:
    """Without credentials the image is refused, and retrying would not help."""
    async with SlowRegistry(padding=1000, pause=0, login="me:secret").serving() as registry:
        config = tmp_path / "config.json"
        host = registry.image.partition("/")[0]
        config.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(b"me:secret").decode()}}}))
        settings = {"docker_pull": "missing", "docker_pull_at_start": False, "docker_init": False}
        games = tiny_games(registry.image)
        try:
            async with launchers.start_docker(games, **settings):
                with pytest.raises(NotConfigured, match="game:1"):
                    await client.deploy(spec())
            async with launchers.start_docker(games, docker_config=config, **settings):
                wanted = spec()
                await client.deploy(wanted)
                await runs(launchers, wanted)
        finally:
            docker("rmi", "-f", registry.image, check=False)


async def test_an_image_may_be_looked_for_at_every_start(
    launchers: LauncherWorld, client: LauncherOrchestrator, spec: Spec, tiny_games: Any
) -> None:
    """The policy `always` finds a newer image of the same tag; a registry that does not answer fails the start."""
    async with SlowRegistry(padding=1000, pause=0).serving() as registry:
        try:
            settings = {"docker_pull": "always", "docker_pull_at_start": False, "docker_init": False}
            async with launchers.start_docker(tiny_games(registry.image), **settings):
                for _ in range(2):
                    registry.asked.clear()
                    wanted = spec()
                    await client.deploy(wanted)
                    await runs(launchers, wanted)
                    assert any("/manifests/" in path for path in registry.asked)
        finally:
            docker("rmi", "-f", registry.image, check=False)
