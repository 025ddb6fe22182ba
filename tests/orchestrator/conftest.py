"""Launchers, real and started for each test; the games they know are small scripts."""

from __future__ import annotations

import itertools
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docker_engine import docker, remove_containers, require_engine
from tests.polling import eventually
from tipoff_launcher.compose import run_launcher
from tipoff_launcher.service import Launcher
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import DockerSpec, Game, Games, ProcessSpec
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.netcode.keys import PrivateKey
from tipoff_shared.settings import NatsSettings

SCRIPTS = {
    # name: what a server of that game does
    "sleeper": "exec sleep 300",
    "stubborn": "trap '' TERM; echo ready; while :; do sleep 0.2; done",
    "crash": "echo 'starting up'; echo 'no map called dust2' >&2; exit 3",
    "family": "sleep 300 & sleep 300 & exec sleep 300",
    "tidy": "trap 'echo tidied up; exit 0' TERM; echo ready; while :; do sleep 0.02; done",
    "guardian": "./tidy.sh & wait",
    "dump": 'env > "$HOME/environment"; exec sleep 300',
    "blab": 'cat "$TIPOFF_PRIVATE_KEY_FILE"; echo; echo "$NATS_PASSWORD"; exit 1',
    "chatty": "while :; do echo 0123456789012345678901234567890123456789; done",
}

KEY = PrivateKey(bytes(range(1, 33)))


@pytest.fixture
def games(tmp_path: Path) -> Games:
    """The scripts as games, each in version "1", with a key that would be noticed anywhere."""
    base = tmp_path / "games"
    base.mkdir()
    known: dict[tuple[str, str], Game] = {}
    for name, text in SCRIPTS.items():
        script = base / f"{name}.sh"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(stat.S_IRWXU)
        known[name, "1"] = Game(
            name, "1", process=ProcessSpec([f"./{name}.sh"], env={"HOME": str(tmp_path)}), start_timeout=1
        )
    return Games(known, dict.fromkeys(known, KEY), base)


DOCKER_IMAGE = "python:3.13-slim"


def docker_game(name: str, script: str, *, start_timeout: float = 1, **more: Any) -> Game:
    """A game whose server is a shell script in a container; `more` goes into its `[game.docker]`."""
    spec = DockerSpec(**{"image": DOCKER_IMAGE, "command": ["sh", "-c", script], "memory": 64, **more})
    return Game(name, "1", docker=spec, start_timeout=start_timeout)


@pytest.fixture
def make_docker_game() -> Callable[..., Game]:
    return docker_game


@pytest.fixture
def docker_games(tmp_path: Path) -> Games:
    """Some of the scripts, as containers."""
    names = ("sleeper", "stubborn", "crash", "blab")
    known = {(name, "1"): docker_game(name, SCRIPTS[name]) for name in names}
    return Games(known, dict.fromkeys(known, KEY), tmp_path)


def containers_of(deployment_id: str, namespace: str, *, all: bool = False) -> list[str]:
    """Ids of the running containers of one deployment (with `all`, of any)."""
    labels = (f"tipoff.namespace={namespace}", f"tipoff.deployment={deployment_id}")
    filters = [part for label in labels for part in ("--filter", f"label={label}")]
    return docker("ps", "-q", "--no-trunc", *(["-a"] if all else []), *filters).split()


@pytest.fixture
def running_containers(namespace: str) -> Callable[..., list[str]]:
    return lambda id, **more: containers_of(id, namespace, **more)


@pytest.fixture
def key() -> PrivateKey:
    """The private key of every game here."""
    return KEY


@pytest.fixture
def launcher_settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", stop_grace=0.4, adopt_grace=0.5, stop_servers_on_exit=True)


StartLauncher = Callable[..., AbstractAsyncContextManager[Launcher]]


@pytest.fixture
def start_launcher(
    launcher_settings: Settings, games: Games, settings: NatsSettings
) -> Iterator[StartLauncher]:
    """Starts launchers in this process, with some settings changed; whatever they leave is killed."""

    @asynccontextmanager
    async def start(
        games: Games = games, nats: NatsSettings = settings, **changes: Any
    ) -> AsyncIterator[Launcher]:
        changed = launcher_settings.model_copy(update=changes)
        async with run_launcher(changed, games, nats) as launcher:
            yield launcher

    yield start
    for pid in servers_in(launcher_settings.state_dir):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def docker_launcher(
    start_launcher: StartLauncher, docker_games: Games, namespace: str
) -> Iterator[StartLauncher]:
    """Starts launchers with the back end `docker`; whatever they leave is removed."""
    require_engine()

    def start(games: Games = docker_games, **changes: Any) -> AbstractAsyncContextManager[Launcher]:
        return start_launcher(games=games, **{"backend": "docker", "docker_pull": "never", **changes})

    yield start
    for each in (namespace, f"{namespace}-b"):
        remove_containers(f"label=tipoff.namespace={each}")


@pytest.fixture
async def launcher(start_launcher: StartLauncher) -> AsyncIterator[Launcher]:
    async with start_launcher() as launcher:
        yield launcher


@pytest.fixture
def client(nats: Bus) -> LauncherOrchestrator:
    """A matchmaker's way to the launcher of the test."""
    return LauncherOrchestrator(nats)


@pytest.fixture
async def kv(nats: Bus) -> Buckets:
    return await create_buckets(nats)


@pytest.fixture
def spec() -> Callable[..., DeploySpec]:
    numbers = itertools.count(1)

    def make(game: str = "sleeper", version: str = "1", id: str = "", **more: object) -> DeploySpec:
        return DeploySpec(id or f"{game}-{next(numbers)}", game, version, 4, **more)  # type: ignore[arg-type] # by test

    return make


def servers_in(state_dir: Path, deployment_id: str | None = None) -> list[int]:
    """Pids of the living processes whose environment names a key file in this state directory."""
    marker = f"TIPOFF_PRIVATE_KEY_FILE={state_dir}/deployments/{deployment_id or ''}"
    if deployment_id is not None:
        marker += "/"
    found: list[int] = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            continue
        if state not in "ZX" and any(v.startswith(marker.encode()) for v in environment.split(b"\0")):
            found.append(int(entry))
    return found


@pytest.fixture
def running_servers(launcher_settings: Settings) -> Callable[..., list[int]]:
    return lambda id=None: servers_in(launcher_settings.state_dir, id)


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., Awaitable[None]]:
    return eventually
