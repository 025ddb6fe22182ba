"""Operators' commands and a launcher that is killed, on a whole system with real servers and players."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.arena_servers import arena_toml
from tests.e2e.steps import all_given_back, pids_of, tipoff, tipoff_json
from tests.polling import eventually
from tipoff.testing import RunningUp, running_up
from tipoff_client_sdk import Player, ServerLost, connect

GAMES = arena_toml(seats=8, min_ready=1, max_deployments=3, empty_ttl=5)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[RunningUp]:
    """With two matchmakers."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES)
    async with running_up(tmp_path / "state", games=games, arguments=("--matchmakers", "2")) as running:
        yield running


async def until_the_end(player: Player) -> None:
    async for _ in player:
        pass


async def test_kick_and_drain(up: RunningUp) -> None:
    """A kicked player is told why; a drained server plays on until its last player leaves, and then it ends."""
    where = ("--state-dir", str(up.state_dir))
    async with (
        connect(up.url, game="arena", version="1") as kicked,
        connect(up.url, game="arena", version="1") as other,
    ):
        assert kicked.deployment_id == other.deployment_id
        ended = asyncio.create_task(until_the_end(kicked))
        code, out = await tipoff("kick", kicked.session_id, "--reason", "be nice", *where)
        assert code == 0, out
        async with asyncio.timeout(5):
            await ended
        status = await tipoff_json("status", "--json", *where)
        assert [session["id"] for session in status["sessions"]] == [other.session_id]
        assert [(o["name"], o["state"]) for o in status["orchestrators"]] == [("launcher", "closed")] * 2

        drained = asyncio.create_task(tipoff("drain", other.deployment_id, "--wait", *where))

        async def draining() -> bool:
            status = await up.status()
            states = {d["id"]: d["state"] for d in status["deployments"]}
            return states[other.deployment_id] == "draining"

        await eventually(draining, "it drains", 10)
        async with connect(up.url, game="arena", version="1") as newcomer:
            assert newcomer.deployment_id != other.deployment_id
        assert not drained.done()
    code, out = await drained
    assert code == 0
    assert "ends with the last of 1 seat(s)" in out
    assert "has ended" in out
    await eventually(lambda: all_given_back(up), "all is given back", 10)


@pytest.mark.row(37)
async def test_players_who_come_while_the_launcher_is_dead_play(up: RunningUp) -> None:
    """kill -9 takes its servers along; `up` starts it again, and whoever asked meanwhile gets a seat."""
    async with connect(up.url, game="arena", version="1") as first:
        (launcher,) = pids_of(up.state_dir, "tipoff_launcher")
        os.kill(launcher, signal.SIGKILL)
        began = time.monotonic()
        with contextlib.suppress(ServerLost):
            await until_the_end(first)
        async with connect(up.url, game="arena", version="1", timeout=40) as second:
            assert second.deployment_id != first.deployment_id
            print(f"a seat {time.monotonic() - began:.1f} s after the launcher's death")
    await eventually(lambda: all_given_back(up), "all is given back", 15)
