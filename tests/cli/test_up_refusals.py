"""`tipoff up` that cannot start says why and what to do, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from tipoff.up.addresses import listen
from tipoff.up.compose import write_missing_keys
from tipoff.up.options import UpOptions, check_open_files, few_open_files
from tipoff.up.run import run_up
from tipoff.up.state_dir import locked
from tipoff_shared.errors import ConfigError
from tipoff_shared.games.toml import key_file, load_games, parse_games

GAMES = '[[game]]\nname = "a"\nversion = "1"\n[game.process]\ncommand = ["python", "server.py"]\n'


@pytest.fixture
def options(tmp_path: Path) -> UpOptions:
    games = tmp_path / "games.toml"
    games.write_text(GAMES)
    return UpOptions(games=games, state_dir=tmp_path / "state", port=0)


async def refusal(options: UpOptions) -> str:
    with pytest.raises(ConfigError) as caught:
        await run_up(options, say=lambda _: None, on_ready=lambda _: None, stop=asyncio.Event())
    return str(caught.value)


@pytest.mark.row(78)
async def test_few_open_files(options: UpOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than the parts need are refused before anything starts; few are told in the terminal."""
    monkeypatch.setattr("tipoff.up.run.hard_file_limit", lambda: 64)
    assert "ulimit -n" in await refusal(options)
    assert not options.state_dir.exists()


@pytest.mark.row(78)
@pytest.mark.parametrize("limit", [128, 256, 1023])
def test_open_files_that_are_few_are_told(limit: int) -> None:
    """With what to do."""
    check_open_files(limit)
    assert f"{limit} files" in few_open_files(limit)
    assert "ulimit -n" in few_open_files(limit)


@pytest.mark.row(78)
@pytest.mark.parametrize("limit", [1024, 1 << 20, None])
def test_open_files_that_are_enough_are_not_mentioned(limit: int | None) -> None:
    """The usual limits."""
    check_open_files(limit)
    assert few_open_files(limit) == ""


async def test_a_busy_port(options: UpOptions) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        assert f"port {port} is in use" in await refusal(dataclasses.replace(options, port=port))


async def test_a_state_directory_in_use(options: UpOptions) -> None:
    with locked(options.state_dir):
        assert "in use by another" in await refusal(options)


async def test_a_missing_games_file(options: UpOptions) -> None:
    assert "tipoff new" in await refusal(dataclasses.replace(options, games=Path("/nowhere/games.toml")))


async def test_half_of_tls(options: UpOptions) -> None:
    assert "belong together" in await refusal(dataclasses.replace(options, tls_cert=Path("x")))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"web": Path("/nowhere")}, "no index.html"),
        ({"tls_cert": Path("/nowhere"), "tls_key": Path("/nowhere")}, "no such file"),
        ({"host": "https://play.example.org"}, "`auto`, an IP address or a DNS name"),
        ({"namespace": "a.b"}, "letters, digits and dashes"),
    ],
)
async def test_a_mistaken_option_is_said_before_anything_starts(
    options: UpOptions, change: dict[str, Any], says: str
) -> None:
    assert says in await refusal(dataclasses.replace(options, **change))
    assert not options.state_dir.exists()


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match="not an address of this machine"):
        listen(["203.0.113.7"], 0)


def test_every_start_makes_new_keys(tmp_path: Path) -> None:
    """Random, private, and never the same twice."""
    games = parse_games(GAMES)
    write_missing_keys(games, tmp_path)
    first = key_file(tmp_path, games[0]).read_text()
    write_missing_keys(games, tmp_path)
    second = key_file(tmp_path, games[0]).read_text()
    assert first != second
    assert key_file(tmp_path, games[0]).stat().st_mode & 0o077 == 0
    (tmp_path / "games.toml").write_text(GAMES)
    loaded = load_games(tmp_path / "games.toml", environ={"TIPOFF_KEYS_DIR": str(tmp_path)})
    assert loaded.private_key(games[0]).reveal().hex() == second
