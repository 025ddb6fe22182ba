"""`tipoff up --edgegap-emulator`: the whole system by Edgegap's API, with bots on real game servers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tipoff.testing import running_up

GAMES = """
[[game]]
name = "arena"
version = "1"
orchestrator = "{orchestrator}"
seats = 4
max_deployments = 3

[game.edgegap]
application = "arena"
version = "1"
port = "udp"

[game.process]
command = ["python", "-m", "tipoff_arena.server"]
"""


@pytest.mark.slow
@pytest.mark.parametrize("orchestrator", ["edgegap", "edgegap-sessions"])
async def test_bots_play_on_servers_that_edgegap_started(tmp_path: Path, orchestrator: str) -> None:
    """Six players need two servers of four seats; Ctrl-C leaves nothing behind."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES.format(orchestrator=orchestrator))
    async with running_up(tmp_path / "state", games=games, arguments=("--edgegap-emulator",)) as up:
        command = ["-m", "tipoff", "play", "--url", up.url, "--bots", "6", "--seconds", "1", "--json"]
        bots = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await bots.communicate()
        assert bots.returncode == 0, said.decode()
        servers = (await up.status())["deployments"]
        assert len([one for one in servers if one["state"] == "ready"]) == 2
        assert await up.stop() == 0
    logs = list((tmp_path / "state" / "edgegap").glob("*.log"))
    assert len(logs) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", ['primary = "webtransport"\nbevygap = true', 'primary = "websocket"', 'primary = "tcp"']
)
async def test_it_starts_with_a_game_of_any_transport(tmp_path: Path, more: str) -> None:
    games = tmp_path / "games.toml"
    games.write_text(
        '[[game]]\nname = "spaceships"\nversion = "1"\norchestrator = "edgegap"\n'
        f'{more}\n[game.edgegap]\napplication = "spaceships"\nversion = "1"\nport = "server"\n'
        '[game.process]\ncommand = ["sleep", "600"]\n'
    )
    async with running_up(tmp_path / "state", games=games, arguments=("--edgegap-emulator",)) as up:
        assert (await up.status())["deployments"] == []
        assert await up.stop() == 0


@pytest.mark.slow
async def test_without_a_game_at_edgegap_up_says_what_to_add(tmp_path: Path) -> None:
    games = tmp_path / "games.toml"
    games.write_text('[[game]]\nname = "a"\nversion = "1"\n[game.process]\ncommand = ["sleep", "1"]\n')
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tipoff", "up", "--edgegap-emulator"),
        *("--games", str(games), "--state-dir", str(tmp_path / "state")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 1
    assert b"[game.edgegap]" in said
