"""The how-to pages do what they say: their programs run, their files are read."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tipoff
from tests.tutorial.page import File, steps
from tipoff_shared.games.toml import parse_games


def blocks(source_tree: Path, page: str) -> dict[str, str]:
    """File name -> content, of a page's blocks."""
    text = (source_tree / "docs/how-to" / page).read_text()
    return {step.path: step.text for step in steps(text) if isinstance(step, File)}


def module(text: str) -> ModuleType:
    """The program of a block, loaded and not run."""
    made = ModuleType("of_the_page")
    exec(compile(text, "of_the_page", "exec"), made.__dict__)
    return made


def serve(game: object, capacity: int) -> tipoff.GameServer:
    return tipoff.GameServer(game, tick_rate=20, capacity=capacity, stand_alone=True, listen="127.0.0.1:0")


def join(server: tipoff.GameServer, name: str) -> Any:
    return tipoff.connect(server.url, game="game", version="1", name=name)


async def until(player: tipoff.ClientPlayer, **wanted: object) -> dict[str, Any]:
    """The first message that says what is `wanted`."""
    async with asyncio.timeout(20):
        async for message in player:
            said: dict[str, Any] = json.loads(message)
            if all(said.get(key) == value for key, value in wanted.items()):
                return said
    raise AssertionError(f"the connection ended before {wanted}: {player.end_reason}")


async def test_the_lobby_begins_when_all_are_ready(source_tree: Path) -> None:
    game = module(blocks(source_tree, "lobby.md")["server.py"]).Game()
    async with serve(game, 4) as server, join(server, "Ann") as ann, join(server, "Bob") as bob:
        await ann.send(b"ready", reliable=True)
        await until(
            bob, players=[{"name": "Ann", "ready": True}, {"name": "Bob", "ready": False}], playing=False
        )
        await bob.send(b"ready", reliable=True)
        await until(ann, playing=True)
        assert server.locked


async def test_a_lobby_that_everybody_has_left_opens_again(source_tree: Path) -> None:
    game = module(blocks(source_tree, "lobby.md")["server.py"]).Game()
    async with serve(game, 4) as server:
        async with join(server, "Ann") as ann, join(server, "Bob") as bob:
            for player in (ann, bob):
                await player.send(b"ready", reliable=True)
            await until(ann, playing=True)
        async with join(server, "Cem") as cem:
            await until(cem, players=[{"name": "Cem", "ready": False}], playing=False)
        assert not server.locked


async def test_a_rematch_begins_when_both_want_it(source_tree: Path) -> None:
    game = module(blocks(source_tree, "rematch.md")["server.py"]).Game()
    async with serve(game, 2) as server, join(server, "Ann") as ann, join(server, "Bob") as bob:
        for _ in range(2):
            await until(bob, playing=True)
            await ann.send(b"won", reliable=True)
            await until(bob, playing=False)
            for player in (ann, bob):
                await player.send(b"again", reliable=True)
        await until(bob, playing=True)


async def test_who_wants_no_rematch_is_sent_away_in_time(source_tree: Path) -> None:
    program = module(blocks(source_tree, "rematch.md")["server.py"])
    program.PATIENCE = 0.2
    async with serve(program.Game(), 2) as server, join(server, "Ann") as ann, join(server, "Bob") as bob:
        await until(ann, playing=True)
        await ann.send(b"won", reliable=True)
        await ann.send(b"again", reliable=True)
        async with asyncio.timeout(20):
            ending = await bob.ended()
        assert ending.reason == "no rematch"
        assert ann.connected


def test_the_files_of_the_pages_are_read(source_tree: Path) -> None:
    (party,) = parse_games(blocks(source_tree, "lobby.md")["games.toml"])
    assert (party.name, party.seats) == ("party", 4)
    games = parse_games(blocks(source_tree, "several-games.md")["games.toml"])
    assert [game.key for game in games] == [("duel", "1"), ("duel", "2"), ("race", "1")]
    assert callable(module(blocks(source_tree, "rematch.md")["client.py"]).main)


async def test_the_test_of_the_page_passes(source_tree: Path) -> None:
    program = module(blocks(source_tree, "debug.md")["test_game.py"])
    await asyncio.to_thread(program.test_what_the_game_answers)


@pytest.mark.parametrize("page", ["lobby.md", "rematch.md", "several-games.md", "debug.md"])
def test_every_command_that_a_page_names_exists(source_tree: Path, page: str) -> None:
    """`tipoff COMMAND`, in docs/cli.md."""
    known = (source_tree / "docs/cli.md").read_text()
    text = (source_tree / "docs/how-to" / page).read_text()
    named = {words.split()[1] for words in re.findall(r"`(tipoff [a-z]+[^`]*)`", text)}
    assert {name for name in named if f"## `tipoff {name}`" not in known} == set()
