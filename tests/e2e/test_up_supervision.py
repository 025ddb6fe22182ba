"""`tipoff up` tells the truth about its parts: none in a restart loop is ready, a full disk is said and survived."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest

from tests.arena_servers import arena_toml
from tests.e2e.steps import pids_of
from tests.faults.small_disk import small_disk
from tests.polling import eventually
from tipoff.testing import RunningUp, running_up
from tipoff.up.child_process import ChildProcess, ProcessSpec
from tipoff.up.nats_keeper import PATIENCE, RestartRule
from tipoff_client_sdk import connect
from tipoff_shared.errors import TipoffError, Unavailable

GAMES = arena_toml(seats=2, min_ready=1, max_deployments=4, empty_ttl=60, tick_rate=10)
CRASHES = """
[[game]]
name = "broken"
version = "1"
seats = 2
min_ready = 1
[game.process]
command = [%r, "-c", "import sys; sys.exit('no map called dust2')"]
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.row(77)
@pytest.mark.parametrize("part", ["tipoff_launcher", "tipoff_matchmaker", "tipoff.up.httpd", "nats-server"])
async def test_a_part_in_a_restart_loop_is_not_ready(tmp_path: Path, part: str) -> None:
    """Killed each time it has come back: readiness says so, or does not answer; the terminal names the part; when it
    stays up, all is ready again."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES)
    async with running_up(tmp_path / "state", games=games) as up:
        name = part.removeprefix("tipoff_").removeprefix("tipoff.up.")
        killed = 0
        while killed < 4:
            for pid in _pids(up, part):
                os.kill(pid, signal.SIGKILL)
                killed += 1
            await asyncio.sleep(0.4)  # the fault's own rhythm
            assert up.process.returncode is None, up.output
        await eventually(lambda: _said(up, f"{name} ended (SIGKILL"), f"the end of {name} in {up.output}", 20)
        if part != "nats-server":
            looping = f"{name} is in a restart loop"
            await eventually(lambda: _said(up, looping), f"the loop in {up.output}", 30)
        await eventually(lambda: _ready(up), f"ready again; {up.output}", 60)
        async with connect(up.url, game="arena", version="1", timeout=30):
            pass


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.row(77)
async def test_up_is_not_ready_while_its_launcher_cannot_stay(tmp_path: Path) -> None:
    """A launcher that dies a moment after its start, when httpd and matchmaker are ready: `up` ends with its last
    words."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES)
    busy = {"TIPOFF_LAUNCHER_CONTEXT_LISTEN": "192.0.2.1:80"}  # not an address of this machine
    with pytest.raises(Unavailable) as caught:
        async with running_up(tmp_path / "state", games=games, environ=busy):
            pass
    assert "launcher" in str(caught.value)
    assert "192.0.2.1" in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.row(77)
async def test_a_game_whose_servers_crash_is_named_and_not_ready(tmp_path: Path) -> None:
    """With the last words of its server, in readiness and in the terminal. Beside a working game: `degraded`."""
    games = tmp_path / "games.toml"
    games.write_text(CRASHES % sys.executable)
    async with running_up(tmp_path / "state", games=games) as up:
        await eventually(lambda: _missing(up, "game broken 1", "dust2"), f"not ready; {up.output}", 40)
        await eventually(lambda: _said(up, "not ready: game broken 1"), f"said in {up.output}", 10)
    games.write_text(CRASHES % sys.executable + GAMES)
    async with running_up(tmp_path / "both", games=games) as up:
        await eventually(lambda: _missing(up, "game broken 1", "dust2"), f"degraded; {up.output}", 40)
        assert await _ready(up)


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.row(76)
async def test_the_disk_of_up_fills_and_is_freed(tmp_path: Path) -> None:
    """New servers are refused while it is full, which is said; when there is room, players play again."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES)
    with small_disk(tmp_path / "disk", "40m") as disk:
        async with running_up(disk.path / "state", games=games) as up:
            async with connect(up.url, game="arena", version="1", timeout=30):
                pass
            disk.fill()
            await eventually(lambda: _said(up, "no new game servers start"), f"said in {up.output}", 15)
            await eventually(lambda: _problem(up, "nearly full"), "shown by status", 15)
            for _ in range(20):  # until even a short write finds no room
                await _plays(up)
            disk.free()
            await eventually(lambda: _said(up, "has room again"), f"said in {up.output}", 15)
            await eventually(lambda: _plays(up), f"a player plays; {up.output}", 60)
            await eventually(lambda: _ready(up), f"ready; {up.output}", 30)


async def test_a_process_that_dies_is_started_again_and_its_loop_is_seen(tmp_path: Path) -> None:
    """Three deaths within a minute are a loop, whatever it lived in between; its last words are told once."""
    module = tmp_path / "dies.py"
    module.write_text("print('no licence found', flush=True)\nraise SystemExit(3)\n")
    said: list[str] = []
    child = await ChildProcess.start(
        ProcessSpec("dies", "dies", "dies", os.environ | {"PYTHONPATH": str(tmp_path)}, tmp_path / "log")
    )
    keeper = asyncio.create_task(child.keep(said.append))
    try:
        await eventually(lambda: _async(child.loops), "the loop is seen", 20)
        assert not child.well
        assert "no licence found" in said[0]
        assert any("restart loop" in line for line in said)
    finally:
        keeper.cancel()
        await child.stop(1)


def test_nats_is_restarted_only_where_that_can_help() -> None:
    """Not while the disk is full, not before a while, and ever more seldom."""
    rule = RestartRule()
    assert not rule.restart_now(0, failing=True, room=True)
    assert not rule.restart_now(PATIENCE - 1, failing=True, room=True)
    assert rule.restart_now(PATIENCE, failing=True, room=True)
    restarts = [now for now in range(11, 400) if rule.restart_now(now, failing=True, room=True)]
    assert restarts == [40, 100, 220]
    assert not rule.restart_now(401, failing=False, room=True)
    rule = RestartRule()
    assert not any(rule.restart_now(now, failing=True, room=False) for now in range(100))
    assert not rule.restart_now(101, failing=True, room=True)
    assert rule.restart_now(101 + PATIENCE, failing=True, room=True)


def _pids(up: RunningUp, part: str) -> list[int]:
    exact = f"-m {part} " if part.startswith("tipoff") else part
    return [pid for pid, line in pids_of(up.state_dir, part).items() if exact in f"{line} "]


async def _async(value: bool) -> bool:
    return value


async def _said(up: RunningUp, text: str) -> bool:
    return any(text in line for line in up.output)


async def _answer(up: RunningUp) -> dict[str, list[str]]:
    async with httpx.AsyncClient(verify=False) as client:
        try:
            found: dict[str, list[str]] = (await client.get(f"{up.url}/readyz", timeout=5)).json()
        except (httpx.HTTPError, ValueError):
            return {}
    return found


async def _ready(up: RunningUp) -> bool:
    return bool((await _answer(up)).get("ready"))


async def _missing(up: RunningUp, *words: str) -> bool:
    answer = await _answer(up)
    texts = [*answer.get("missing", ()), *answer.get("degraded", ())]
    return any(all(word in text for word in words) for text in texts)


async def _problem(up: RunningUp, text: str) -> bool:
    status = await up.status()
    return any(text in problem for one in status["orchestrators"] for problem in one["problems"])


async def _plays(up: RunningUp) -> bool:
    try:
        async with connect(up.url, game="arena", version="1", timeout=10):
            return True
    except TipoffError:
        return False
