"""What tests of commands share: a small world (NATS, a matchmaker, a fake orchestrator), and a secrets directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.matchmaker.world import World
from tipoff.secrets.directory import SecretsDirectory
from tipoff_shared.games import Game
from tipoff_shared.games.toml import parse_games, read_games
from tipoff_shared.nats.connection import connect
from tipoff_shared.settings import NatsSettings

GAMES = """
[[game]]
name = "arena"
version = "1"
[game.process]
command = ["python", "-m", "tipoff_arena.server"]

[[game]]
name = "own key"
version = "v0.0.2"
private_key_env = "OWN_KEY"
[game.process]
command = ["python", "-m", "tipoff_arena.server"]
"""


@pytest.fixture
async def world(settings: NatsSettings) -> AsyncIterator[World]:
    """NATS, an orchestrator and gameservers; matchmakers are started by the test."""
    async with connect(settings, name="world") as bus, World(bus, settings) as world:
        yield world


@pytest.fixture
def games_toml(tmp_path: Path) -> Path:
    path = tmp_path / "games.toml"
    path.write_text(GAMES)
    return path


@pytest.fixture
def games(games_toml: Path) -> list[Game]:
    return parse_games(read_games(games_toml), str(games_toml))


@pytest.fixture
def made(tmp_path: Path, games: list[Game]) -> SecretsDirectory:
    directory = SecretsDirectory(tmp_path / "secrets", games)
    directory.initialise(["play.example.org"])
    return directory
