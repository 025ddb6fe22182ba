"""bevygap's own client and server plugins (crates.io, Bevy 0.14, lightyear 0.17) play through tipoff.

`make interop-bevygap` builds the two programs in this folder and runs this file; INTEROP_BEVYGAP is the folder of the
built programs.
"""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.polling import eventually
from tipoff.testing import RunningUp, running_up

PROGRAMS = os.path.abspath(os.environ["INTEROP_BEVYGAP"]) if "INTEROP_BEVYGAP" in os.environ else ""
COUNT = 20
"""Messages that a client sends, each after the echo of the one before."""
GAMES = """
[[game]]
name = "interop"
version = "1"
{orchestrator}
seats = {seats}
max_deployments = 2
protocol_id = 80085
dialect = "lightyear"
bevygap = true
ready = "context"
primary = "webtransport"

[game.process]
command = ["{server}"]
ports = {{ webtransport = "udp" }}
"""
EDGEGAP = """
[game.edgegap]
application = "interop"
version = "1"
port = "webtransport"
"""

pytestmark = [
    pytest.mark.skipif(not PROGRAMS, reason="needs the built programs: make interop-bevygap"),
    pytest.mark.slow,
    pytest.mark.alone,
]


def games_file(directory: Path, *, seats: int = 8, edgegap: str = "") -> Path:
    """`edgegap`: the orchestrator at the emulated Edgegap; "" is the launcher."""
    orchestrator = f'orchestrator = "{edgegap}"' if edgegap else ""
    server = Path(PROGRAMS, "server")
    assert server.exists(), f"{server} is not built"
    path = directory / "games.toml"
    text = GAMES.format(orchestrator=orchestrator, seats=seats, server=server)
    path.write_text(text + (EDGEGAP if edgegap else ""))
    return path


async def play(up: RunningUp) -> tuple[int, list[str]]:
    """A player from start to end: the exit code, and the words it printed."""
    client = await asyncio.create_subprocess_exec(
        os.path.join(PROGRAMS, "client"),
        env=os.environ
        | {
            "INTEROP_URL": up.url.replace("http", "ws", 1) + "/matchmaker/ws",
            "INTEROP_GAME": "interop",
            "INTEROP_VERSION": "1",
            "RUST_LOG": "warn",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await client.communicate()
    return client.returncode or 0, said.decode(errors="replace").splitlines()


def check_play(code: int, said: list[str]) -> None:
    """Matchmaking, connect by WebTransport, all echoes, leave."""
    told = "\n".join(said)
    assert code == 0, told
    assert "matchmaking ReadyToConnect" in said or "matchmaking Finished" in said, told
    assert re.search(r"^connected \d+$", told, re.MULTILINE), told
    assert said[-2:] == [f"heard {COUNT} of {COUNT}", "left"], told


async def nobody_is_left(up: RunningUp) -> None:
    """Whoever left gave the seat back, and the server goes on."""

    async def free_servers() -> list[dict[str, Any]]:
        servers = (await up.status())["deployments"]
        ready = [one for one in servers if one["state"] == "ready"]
        return ready if not any(one["seats"] for one in servers) else []

    await eventually(free_servers, "all seats are free", timeout=20)


async def test_a_bevy_game_plays_through_tipoff(tmp_path: Path) -> None:
    """And the next player plays on the same server."""
    async with running_up(tmp_path / "state", games=games_file(tmp_path)) as up:
        for _ in range(2):
            check_play(*await play(up))
            await nobody_is_left(up)
        assert len((await up.status())["deployments"]) == 1


async def test_two_servers_of_one_host_are_told_apart(tmp_path: Path) -> None:
    async with running_up(tmp_path / "state", games=games_file(tmp_path, seats=1)) as up:
        for code, said in await asyncio.gather(play(up), play(up)):
            check_play(code, said)
        await nobody_is_left(up)


@pytest.mark.parametrize("orchestrator", ["edgegap", "edgegap-sessions"])
async def test_a_bevy_game_plays_on_an_emulated_edgegap(tmp_path: Path, orchestrator: str) -> None:
    games = games_file(tmp_path, edgegap=orchestrator)
    async with running_up(tmp_path / "state", games=games, arguments=("--edgegap-emulator",)) as up:
        check_play(*await play(up))
        await nobody_is_left(up)
