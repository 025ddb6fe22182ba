"""The launcher across a restart of NATS: its servers live on, and it answers as soon as it is back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.polling import eventually
from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_launcher.compose import run_launcher
from tipoff_launcher.service import Launcher
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import Deployment, DeploySpec, OrchestratorUnavailable, RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Game, Games, ProcessSpec
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.netcode import PrivateKey

SLEEP = "import time; time.sleep(300)"
SLOW_END = (
    "import signal, sys, time; signal.signal(15, lambda *_: (time.sleep(1), sys.exit(0))); time.sleep(300)"
)


@dataclass(frozen=True, slots=True)
class Host:
    """A launcher, its NATS, and a client of it."""

    nats: EmbeddedNats
    bus: Bus
    launcher: Launcher
    client: LauncherOrchestrator

    async def restart_nats(self, *, down: float = 0.0) -> None:
        """Kill -9, back after `down` seconds; returns when the client is connected again."""
        back = asyncio.Event()
        self.bus.on_reconnect(back.set)
        await self.nats.kill()
        await asyncio.sleep(down)  # the outage
        await self.nats.start()
        async with asyncio.timeout(10):
            await back.wait()

    async def answers(self, timeout: float = 10) -> list[str]:
        """Ids of what runs, as soon as the launcher says so."""
        found: list[str] = []

        async def listed() -> bool:
            found.extend(sorted(deployment.deployment_id for deployment in await self.client.list()))
            return True

        await eventually(listed, "the launcher answers", timeout, unready=(OrchestratorUnavailable,))
        return found


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    games = {
        name: Game(name, "1", process=ProcessSpec([sys.executable, "-c", code]))
        for name, code in (("sleep", SLEEP), ("slow-end", SLOW_END))
    }
    known = Games(
        {game.key: game for game in games.values()},
        {game.key: PrivateKey(bytes(range(1, 33))) for game in games.values()},
        tmp_path,
    )
    settings = Settings(state_dir=tmp_path / "state", stop_grace=3, stop_servers_on_exit=True)
    async with embedded_nats(tmp_path / "nats") as nats:
        nats_settings = nats.settings("launcher")
        async with (
            run_launcher(settings, known, nats_settings) as launcher,
            connect(nats_settings, name="client") as bus,
        ):
            yield Host(nats, bus, launcher, LauncherOrchestrator(bus, deadline=2))


@pytest.mark.row(13, 16)
async def test_servers_live_through_a_restart_of_nats_and_the_launcher_answers(host: Host) -> None:
    """The same processes as before; then one more is started, and one is stopped; events come."""
    for name in ("a", "b"):
        await host.client.deploy(DeploySpec(name, "sleep", "1", 4))
    before = {name: await host.client.get(name) for name in ("a", "b")}
    await host.restart_nats()
    began = time.monotonic()
    assert await host.answers() == ["a", "b"]
    print(f"the launcher answers {time.monotonic() - began:.2f} s after the client was back")
    assert {name: await host.client.get(name) for name in ("a", "b")} == before
    async with Events(host) as events:
        assert (await host.client.deploy(DeploySpec("c", "sleep", "1", 4))).state is RunState.RUNNING
        await host.client.stop("a")
        told = [await asyncio.wait_for(events.get(), 5) for _ in range(2)]
        assert [(event.deployment_id, event.state) for event in told] == [
            ("c", RunState.RUNNING),
            ("a", RunState.STOPPED),
        ]
    assert await host.answers() == ["b", "c"]


@pytest.mark.row(16)
async def test_what_ended_while_nats_was_away_is_known_afterwards(host: Host) -> None:
    """The event reaches nobody; the list and the reason tell."""
    for name in ("lives", "dies"):
        await host.client.deploy(DeploySpec(name, "sleep", "1", 4))
    dies = await host.client.get("dies")
    assert dies is not None
    await host.nats.kill()
    os.kill(int(dies.native_id.split("@")[0]), signal.SIGKILL)
    await host.restart_nats()
    assert await host.answers() == ["lives"]
    found = await host.client.get("dies")
    assert found is not None
    assert found.state is RunState.STOPPED
    assert "SIGKILL" in found.reason


@pytest.mark.row(13, 15)
async def test_what_was_asked_when_nats_died_is_done_once(host: Host) -> None:
    """A deploy and a stop were in hand; their answers are lost, the same asked again is answered, and nothing was
    started twice."""
    await host.client.deploy(DeploySpec("ends", "slow-end", "1", 4))
    await asyncio.sleep(0.3)  # in which its handler of SIGTERM is set
    stopping = asyncio.create_task(host.client.stop("ends"))
    deploying = asyncio.create_task(host.client.deploy(DeploySpec("new", "sleep", "1", 4)))
    await asyncio.sleep(0.01)  # the moment of the fault: how far each has come does not matter
    await host.restart_nats()
    for task in (stopping, deploying):
        task.cancel()
    await asyncio.gather(stopping, deploying, return_exceptions=True)
    await host.answers()
    first = await host.client.deploy(DeploySpec("new", "sleep", "1", 4))
    again = await host.client.deploy(DeploySpec("new", "sleep", "1", 4))
    assert first.native_id == again.native_id
    await host.client.stop("ends")
    assert await host.answers() == ["new"]


async def test_without_nats_a_client_is_told_at_once_and_nothing_starts_later(host: Host) -> None:
    """Refused at once and certainly not started, so that the matchmaker may plan anew."""
    gone = asyncio.Event()
    host.bus.on_disconnect(gone.set)
    await host.nats.kill()
    async with asyncio.timeout(5):
        await gone.wait()
    began = time.monotonic()
    with pytest.raises(OrchestratorUnavailable) as refused:
        await host.client.deploy(DeploySpec("never", "sleep", "1", 4))
    assert time.monotonic() - began < 0.5
    assert (refused.value.retryable, refused.value.may_have_started) == (True, False)
    await host.restart_nats()
    assert await host.answers() == []


class Events:
    """The launcher's events in a queue, heard from now on."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._queue: asyncio.Queue[Deployment] = asyncio.Queue()

    async def __aenter__(self) -> asyncio.Queue[Deployment]:
        self._task = asyncio.create_task(self._hear())
        await asyncio.sleep(0)  # it subscribes
        await self._host.bus.flush()
        return self._queue

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _hear(self) -> None:
        async for event in self._host.client.events():
            self._queue.put_nowait(event)
