"""games.toml changes while `tipoff up` runs: players notice nothing but new games."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.e2e.steps import tipoff, tipoff_json
from tests.polling import eventually
from tipoff.testing import RunningUp, running_up
from tipoff_client_sdk import connect
from tipoff_shared.errors import UnknownGame

pytestmark = [pytest.mark.row(98), pytest.mark.slow, pytest.mark.timeout(180)]

GAME = """
[[game]]
name = "{name}"
version = "1"
seats = 4
min_ready = 1
max_deployments = {most}

[game.process]
command = ["python", "server.py", "{greeting}"]
"""
SERVER = """
import sys
from tipoff_gameserver import Game, GameServer


class Greeter(Game):
    def on_join(self, player):
        player.send(sys.argv[1].encode())

    def on_message(self, player, data):
        player.send(data)


GameServer(Greeter()).main()
"""
FIRST = GAME.format(name="first", greeting="hello from the first", most=2)
SECOND = GAME.format(name="second", greeting="hello from the second", most=2)


async def _told(up: RunningUp, text: str) -> None:
    async def told() -> bool:
        return any(text in line for line in up.output)

    await eventually(told, f"{text!r} told in {up.output}", 30)


async def _play(up: RunningUp, game: str) -> bytes:
    async with asyncio.timeout(60), connect(up.url, game=game, version="1") as player:
        return await anext(aiter(player))


async def test_a_second_game_is_played_without_a_restart_and_a_broken_file_changes_nothing(
    tmp_path: Path,
) -> None:
    """A player of the first game plays on all the time."""
    games = tmp_path / "games.toml"
    games.write_text(FIRST)
    (tmp_path / "server.py").write_text(SERVER)
    async with (
        running_up(tmp_path / "state", games=games) as up,
        asyncio.timeout(150),
        connect(up.url, game="first", version="1") as ann,
    ):
        assert await anext(aiter(ann)) == b"hello from the first"

        games.write_text(FIRST + SECOND)
        await _told(up, "new: second 1")
        assert await _play(up, "second") == b"hello from the second"

        games.write_text(FIRST + SECOND.replace("seats = 4", 'seats = "four"'))
        line = FIRST.count("\n") + 5
        await _told(up, f"games.toml:{line}: seats: a whole number without quotes is expected")
        for game in ("first", "second"):
            assert await _play(up, game) == f"hello from the {game}".encode()
        code, _ = await tipoff("reload", "--state-dir", str(tmp_path / "state"))
        assert code == 1

        games.write_text(FIRST)
        await _told(up, "removed: second 1")

        async def gone() -> bool:
            try:
                await _play(up, "second")
            except UnknownGame:
                return True
            return False

        await eventually(gone, "the second game takes no players", 30)
        await ann.send(b"still here")
        assert await anext(aiter(ann)) == b"still here"


async def test_an_operator_publishes_a_file_and_hears_which_part_lacks_what(tmp_path: Path) -> None:
    """The command is at the launcher only: a game that it does not know is published and cannot start."""
    games, elsewhere = tmp_path / "games.toml", tmp_path / "operator.toml"
    games.write_text(FIRST)
    (tmp_path / "server.py").write_text(SERVER)
    state = str(tmp_path / "state")
    async with running_up(tmp_path / "state", games=games) as up, asyncio.timeout(150):
        elsewhere.write_text(GAME.format(name="first", greeting="other", most=3))
        done = await tipoff_json("reload", "--games", str(elsewhere), "--state-dir", state, "--json")
        assert done["changed"] == {"first 1": ["max_deployments 2 -> 3"]}
        assert done["problems"] == []
        assert await _play(up, "first") == b"hello from the first", "the command is the launcher's own"

        elsewhere.write_text(FIRST + SECOND)
        code, out = await tipoff("reload", "--games", str(elsewhere), "--state-dir", state, "--json")
        assert code == 1
        assert "second 1" in out
        assert "launcher: game second 1" in out


@pytest.mark.row(103)
async def test_a_rollout_replaces_servers_and_their_players_play_on(tmp_path: Path) -> None:
    """With the command that games.toml has now."""
    games, state = tmp_path / "games.toml", str(tmp_path / "state")
    games.write_text(FIRST)
    (tmp_path / "server.py").write_text(SERVER)
    async with (
        running_up(tmp_path / "state", games=games) as up,
        asyncio.timeout(150),
        connect(up.url, game="first", version="1") as ann,
    ):
        assert await anext(aiter(ann)) == b"hello from the first"
        games.write_text(FIRST.replace("hello from the first", "hello from its successor"))
        await _told(up, "`tipoff rollout first 1` replaces them")
        (done,) = await tipoff_json("rollout", "first", "--state-dir", state, "--json")
        assert done["draining"] == {ann.deployment_id: 1}
        assert done["left"] == []
        assert await _play(up, "first") == b"hello from its successor"
        await ann.send(b"still here")
        assert await anext(aiter(ann)) == b"still here"
