"""Starts launchers for the tests of this folder, whose games are small scripts, and looks at what runs then."""

from __future__ import annotations

import itertools
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from tests.docker_engine import docker, remove_containers
from tipoff_launcher.compose import run_launcher
from tipoff_launcher.records import Record, Records
from tipoff_launcher.service import Launcher
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import DeploySpec, RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import DockerSpec, Game, Games, ProcessSpec
from tipoff_shared.messages import Transports
from tipoff_shared.netcode.keys import PrivateKey
from tipoff_shared.records import GameserverLease, LeaseState
from tipoff_shared.settings import NatsSettings

Spec = Callable[..., DeploySpec]
Eventually = Callable[..., Awaitable[None]]

KEY = PrivateKey(bytes(range(1, 33)))
"""The private key of every game; it would be noticed anywhere."""

DOCKER_IMAGE = "python:3.13-slim"

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
    "ticker": "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done",
    "daemons": (
        'note="$PWD/daemons.$TIPOFF_DEPLOYMENT_ID"\n'
        'run="echo \\$\\$ >> $note; exec sleep 300"\n'
        'setsid env -i PATH="$PATH" sh -c "$run" &\n'  # in its own session
        '(setsid env -i PATH="$PATH" sh -c "$run" &)\n'  # and its parent is gone
        '(setsid sh -c "$run" &)\n'  # and its environment tells whose it is
        "exec sleep 300"
    ),
    "chatty": "while :; do echo 0123456789012345678901234567890123456789; done",
}


def script_games(directory: Path) -> Games:
    """The scripts as games with the back end `process`, each in version "1". Their HOME is `directory`."""
    base = directory / "games"
    base.mkdir()
    known: dict[tuple[str, str], Game] = {}
    for name, text in SCRIPTS.items():
        script = base / f"{name}.sh"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(stat.S_IRWXU)
        process = ProcessSpec([f"./{name}.sh"], env={"HOME": str(directory)})
        known[name, "1"] = Game(name, "1", process=process, start_timeout=1)
    return Games(known, dict.fromkeys(known, KEY), base)


def docker_game(name: str, script: str, *, start_timeout: float = 1, **more: Any) -> Game:
    """A game whose server is a shell script in a container; `more` goes into its `[game.docker]`."""
    spec = DockerSpec(**{"image": DOCKER_IMAGE, "command": ["sh", "-c", script], "memory": 64, **more})
    return Game(name, "1", docker=spec, start_timeout=start_timeout)


def docker_games(base: Path, *games: Game, **scripts: str) -> Games:
    """A games.toml with these games and scripts; by default with some of `SCRIPTS` in containers."""
    if not games and not scripts:
        scripts = {name: SCRIPTS[name] for name in ("sleeper", "stubborn", "crash", "blab")}
    known = [*games, *(docker_game(name, script) for name, script in scripts.items())]
    return Games({game.key: game for game in known}, {game.key: KEY for game in known}, base)


def numbered_specs() -> Spec:
    """Makes specs with a new deployment id each."""
    numbers = itertools.count(1)

    def make(game: str = "sleeper", version: str = "1", id: str = "", **more: Any) -> DeploySpec:
        return DeploySpec(id or f"{game}-{next(numbers)}", game, version, 4, **more)

    return make


def lease(spec: DeploySpec) -> GameserverLease:
    """The lease that a server writes when it is ready."""
    return GameserverLease(
        spec.deployment_id, "b" * 16, spec.game, spec.version, LeaseState.READY, Transports(), spec.capacity
    )


class LauncherWorld:
    """Launchers in this process on one state directory, their client, and the servers they start.

    Call `close` at the end: it removes whatever launchers have left running.
    """

    def __init__(self, directory: Path, nats: NatsSettings, client: LauncherOrchestrator) -> None:
        self.directory = directory
        self.nats = nats
        self.client = client
        self.games = script_games(directory)
        self.settings = Settings(
            state_dir=directory / "state", stop_grace=0.4, adopt_grace=0.5, stop_servers_on_exit=True
        )
        self._docker = False

    @asynccontextmanager
    async def start(
        self, games: Games | None = None, nats: NatsSettings | None = None, **changes: Any
    ) -> AsyncIterator[Launcher]:
        """A launcher for the time of the block, with some of its settings changed."""
        changed = self.settings.model_copy(update=changes)
        async with run_launcher(changed, games or self.games, nats or self.nats) as launcher:
            yield launcher

    def start_docker(
        self, games: Games | None = None, **changes: Any
    ) -> AbstractAsyncContextManager[Launcher]:
        """The same with the back end `docker`, for tests with the mark `docker`."""
        self._docker = True
        changes = {"backend": "docker", "docker_pull": "never", **changes}
        return self.start(games or docker_games(self.directory), **changes)

    def close(self) -> None:
        for pid in self.servers():
            os.kill(pid, signal.SIGKILL)
        if self._docker:
            for namespace in (self.nats.namespace, f"{self.nats.namespace}-b"):
                remove_containers(f"label=tipoff.namespace={namespace}")

    # What is there.

    def servers(self, deployment_id: str | None = None) -> list[int]:
        """Pids of the living processes whose environment names a key file in the state directory."""
        marker = f"TIPOFF_PRIVATE_KEY_FILE={self.settings.state_dir}/deployments/{deployment_id or ''}"
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

    def containers(self, deployment_id: str, *, all: bool = False) -> list[str]:
        """Ids of a deployment's running containers; with `all`, of its stopped ones too."""
        labels = (f"tipoff.namespace={self.nats.namespace}", f"tipoff.deployment={deployment_id}")
        filters = [part for label in labels for part in ("--filter", f"label={label}")]
        return docker("ps", "-q", "--no-trunc", *(["-a"] if all else []), *filters).split()

    def server_directory(self, deployment_id: str) -> Path:
        """Where the launcher keeps a server's record and log."""
        return self.settings.state_dir / "deployments" / deployment_id

    def daemons(self, deployment_id: str) -> list[int]:
        """Pids of the three processes that a server of the game `daemons` starts; all that were started so far."""
        note = self.games.base / f"daemons.{deployment_id}"
        return [int(line) for line in note.read_text().split()] if note.exists() else []

    def log_of(self, deployment_id: str) -> str:
        """What a server has said; "" before it has a log."""
        path = self.server_directory(deployment_id) / "server.log"
        return path.read_text() if path.exists() else ""

    def records(self) -> dict[str, Record]:
        """The records on disk, by deployment id."""
        return {record.deployment_id: record for record in Records(self.settings.state_dir).load()[0]}

    async def state_of(self, spec: DeploySpec) -> RunState | None:
        """What the launcher says; None when it does not know the server."""
        known = await self.client.get(spec.deployment_id)
        return None if known is None else known.state

    async def is_stopped(self, spec: DeploySpec) -> bool:
        """Whether the launcher knows that the server has ended."""
        return await self.state_of(spec) is RunState.STOPPED
