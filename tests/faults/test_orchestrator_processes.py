"""Faults of game servers that a real launcher starts as processes."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.matchmaker.world import KEY, World, failed
from tipoff_launcher.compose import run_launcher
from tipoff_launcher.service import Launcher
from tipoff_launcher.settings import Settings as LauncherSettings
from tipoff_matchmaker.service import Matchmaker, run_matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Game, Games, ProcessSpec
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import DeploymentState, SessionState


@pytest.fixture
async def launcher(world: World, tmp_path: Path) -> AsyncIterator[Launcher]:
    """A real launcher with three games: one that serves, one that never says anything, one that cannot start."""
    async with run_launcher(
        LauncherSettings(state_dir=tmp_path / "launcher", stop_grace=0.5, stop_servers_on_exit=True),
        process_games(tmp_path),
        world.nats_settings,
    ) as launcher:
        yield launcher


def process_games(base: Path) -> Games:
    silent, broken = base / "silent.sh", base / "broken.sh"
    silent.write_text("#!/bin/sh\nexec sleep 300\n")
    broken.write_text("#!/bin/sh\necho 'no map called dust2' >&2\nexit 3\n")
    for script in (silent, broken):
        script.chmod(stat.S_IRWXU)
    commands = {
        "serves": ["python", "-m", "tipoff_arena.server"],
        "silent": [str(silent)],
        "broken": [str(broken)],
    }
    games = {
        (name, "1"): Game(
            name,
            "1",
            seats=4,
            max_deployments=2,
            empty_ttl=60,
            start_timeout=10 if name == "serves" else 1.5,
            process=ProcessSpec(command, env={"ARENA_BOTS": "0"}),
        )
        for name, command in commands.items()
    }
    return Games(games, dict.fromkeys(games, KEY), base)


@asynccontextmanager
async def with_processes(
    world: World, launcher: Launcher, tmp_path: Path, orchestrator: LauncherOrchestrator | None = None
) -> AsyncIterator[Matchmaker]:
    settings = Settings(
        sweep_interval=0.3, listing_interval=0.3, backoff=0.05, lease_grace=2, start_failures=2
    )
    async with run_matchmaker(
        settings,
        process_games(tmp_path),
        world.nats_settings,
        {"launcher": orchestrator or LauncherOrchestrator(world.bus)},
    ) as matchmaker:
        yield matchmaker


def pid_of(launcher: Launcher, deployment_id: str) -> int:
    deployment = launcher.supervisor.get(deployment_id)
    assert deployment is not None
    return int(deployment.native_id.partition("@")[0])


async def launched(launcher: Launcher, count: int, world: World) -> None:
    async def there() -> bool:
        return len(launcher.supervisor.living()) == count

    await world.eventually(there, f"{count} processes run", timeout=10)


@pytest.mark.slow
@pytest.mark.row(42, 44)
async def test_a_killed_process_frees_its_seats(world: World, launcher: Launcher, tmp_path: Path) -> None:
    """kill -9: the session ends within a second or so, by the launcher's event; stopping what is dead is done."""
    async with with_processes(world, launcher, tmp_path):
        ready = await (await world.ask("serves")).end(timeout=15)
        assert isinstance(ready, SessionReady)
        began = time.monotonic()
        os.kill(pid_of(launcher, ready.deployment_id), signal.SIGKILL)
        session = await world.session_becomes(ready.session_id, SessionState.GONE)
        assert time.monotonic() - began < 3
        assert "SIGKILL" in session.reason
        await launched(launcher, 0, world)


@pytest.mark.slow
@pytest.mark.row(41)
async def test_a_process_that_never_says_anything_is_ended(
    world: World, launcher: Launcher, tmp_path: Path
) -> None:
    """408 at the player's deadline, and the process is not left running."""
    async with with_processes(world, launcher, tmp_path):
        answers = await world.ask("silent", timeout=1.0)
        assert failed(await answers.end()).code == 408
        await launched(launcher, 0, world)


@pytest.mark.row(37)
async def test_a_process_that_cannot_start_is_told_soon(
    world: World, launcher: Launcher, tmp_path: Path
) -> None:
    """502; its exit is no trouble of the launcher's, so no breaker opens."""
    async with with_processes(world, launcher, tmp_path) as matchmaker:
        assert failed(await (await world.ask("broken")).end()).code == 502
        await launched(launcher, 0, world)
        assert matchmaker.parts.orchestrators["launcher"].describe().state == "closed"


class LosesAnswers(LauncherOrchestrator):
    """The launcher does as told, and the first answers do not arrive."""

    def __init__(self, world: World, times: int) -> None:
        super().__init__(world.bus)
        self.times = times
        self.asked: list[str] = []

    async def deploy(self, spec: DeploySpec) -> Deployment:
        self.asked.append(spec.deployment_id)
        deployment = await super().deploy(spec)
        if self.times > 0:
            self.times -= 1
            raise OrchestratorUnavailable("no answer in time", retryable=True, may_have_started=True)
        return deployment


@pytest.mark.slow
@pytest.mark.row(38)
async def test_a_process_whose_start_was_not_confirmed_is_used(
    world: World, launcher: Launcher, tmp_path: Path
) -> None:
    """One process, however often it was asked for."""
    orchestrator = LosesAnswers(world, times=2)
    async with with_processes(world, launcher, tmp_path, orchestrator):
        ready = await (await world.ask("serves")).end(timeout=15)
        assert isinstance(ready, SessionReady)
        assert orchestrator.asked == [ready.deployment_id] * 3
        assert [d.deployment_id for d in launcher.supervisor.living()] == [ready.deployment_id]


@pytest.mark.row(38)
async def test_a_process_that_nobody_remembers_is_ended(
    world: World, launcher: Launcher, tmp_path: Path
) -> None:
    """Started by a call whose caller is gone, in no record."""
    async with run_matchmaker(
        Settings(sweep_interval=0.2, orphan_grace=0.5, lease_ttl=1),  # nothing is ended before two TTLs
        process_games(tmp_path),
        world.nats_settings,
        {"launcher": LauncherOrchestrator(world.bus)},
    ):
        await LauncherOrchestrator(world.bus).deploy(DeploySpec("silent-1", "silent", "1", 4))
        assert len(launcher.supervisor.living()) == 1
        await launched(launcher, 0, world)


@pytest.mark.row(43)
async def test_a_forged_event_ends_no_process(world: World, launcher: Launcher, tmp_path: Path) -> None:
    """Anybody on NATS may say that it stopped; the launcher is asked, and says no."""
    async with run_matchmaker(
        Settings(sweep_interval=3600),
        process_games(tmp_path),
        world.nats_settings,
        {"launcher": LauncherOrchestrator(world.bus)},
    ) as matchmaker:
        await world.ask("silent", timeout=5)

        async def runs() -> bool:
            return [one.state for one in launcher.supervisor.living()] == [RunState.RUNNING]

        await world.eventually(runs, "the process runs", timeout=10)
        (deployment,) = launcher.supervisor.living()
        forged = wire.encode_deployment(replace(deployment, state=RunState.STOPPED, reason="forged"))
        for _ in range(10):
            await world.bus.publish(world.bus.subjects.launcher("local", "events"), forged)
        await world.bus.flush()
        await matchmaker.parts.reconciler.once()
        record = matchmaker.parts.deployments.get(deployment.deployment_id)
        assert record is not None
        assert record.state is DeploymentState.STARTING
        assert launcher.supervisor.living() == [deployment]
        with pytest.raises(OrchestratorError):
            wire.decode_deployment(b"forged")
