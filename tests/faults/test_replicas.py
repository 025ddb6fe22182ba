"""Two matchmakers and two httpds, as `tipoff up` runs them: one of them dies or stops while players arrive, and every
player gets into the game."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from tests.arena_servers import arena_toml
from tipoff.testing import RunningUp, running_up
from tipoff_client_sdk import connect

PLAYERS = 200
EVERY = 0.02
"""Seconds between two players who come: four for all of them."""
AT = 5
"""The player with whom the fault comes: there is no server yet, so those before him wait, with all that answer them."""

GAMES = arena_toml(seats=32, min_ready=0, max_deployments=8, empty_ttl=5)


@asynccontextmanager
async def replicas(directory: Path) -> AsyncIterator[RunningUp]:
    games = directory / "games.toml"
    games.write_text(GAMES)
    arguments = ("--matchmakers", "2", "--httpds", "2")
    async with running_up(directory / "state", games=games, arguments=arguments) as up:
        yield up


def processes_of(up: RunningUp, module: str) -> list[int]:
    """Process ids of the parts that `up` runs as `python -m MODULE`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if int(parent) == up.process.pid and module.encode() in words:
                found.append(int(entry.name))
    return sorted(found)


async def everybody_plays(up: RunningUp, victim: int, fault: signal.Signals) -> list[float]:
    """Seconds each player waited for the game; `fault` hits `victim` when `AT` have come."""
    loop = asyncio.get_running_loop()

    async def play() -> float:
        began = loop.time()
        async with connect(up.url, game="arena", version="1", timeout=30) as player:
            await player.receive()
            return loop.time() - began

    players: list[asyncio.Task[float]] = []
    async with asyncio.TaskGroup() as group:
        for number in range(PLAYERS):
            if number == AT:
                os.kill(victim, fault)
            players.append(group.create_task(play()))
            await asyncio.sleep(EVERY)  # they arrive one after the other, whatever happens
    waited = sorted(task.result() for task in players)
    print(f"{fault.name}: p50 {waited[PLAYERS // 2] * 1000:.0f} ms, longest {waited[-1]:.1f} s")
    return waited


async def nothing_is_left(up: RunningUp) -> None:
    """All players have left: their sessions end, their seats are free."""
    async with asyncio.timeout(60):
        while True:
            status = await up.status()
            seats = sum(len(deployment["seats"]) for deployment in status["deployments"])
            if not status["sessions"] and not seats:
                return
            await asyncio.sleep(0.2)  # status is a question, not an event


@pytest.mark.slow
@pytest.mark.row(34)
@pytest.mark.parametrize("part", ["tipoff_matchmaker", "tipoff.up.httpd"])
@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL, signal.SIGTERM])
async def test_every_player_is_served(tmp_path: Path, part: str, fault: signal.Signals) -> None:
    """Row 34: one of two is stopped, killed, or asked to end."""
    async with replicas(tmp_path) as up:
        victims = processes_of(up, part)
        assert len(victims) == 2
        try:
            waited = await everybody_plays(up, victims[0], fault)
        finally:
            with suppress(ProcessLookupError):
                os.kill(victims[0], signal.SIGCONT)
        assert len(waited) == PLAYERS
        assert waited[-1] < 15.0
        await nothing_is_left(up)
