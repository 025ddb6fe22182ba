"""What `tipoff play` plays, and where, when its options do not say."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tipoff.app import app
from tipoff.play.commands import DEFAULT_URL, chosen_game, read_auth, url_of_running
from tipoff.play.players import PlayOptions
from tipoff_shared.errors import ConfigError

GAMES = """
[[game]]
name = "pong"
version = "2"
[game.process]
command = ["x"]
[[game]]
name = "chess"
version = "7"
[game.process]
command = ["x"]
"""


@pytest.mark.parametrize(
    ("game", "version", "expected"),
    [
        (None, None, ("pong", "2")),
        ("chess", None, ("chess", "7")),
        (None, "7", ("chess", "7")),
        ("go", None, ("go", "1")),
        ("go", "3", ("go", "3")),
    ],
)
def test_in_a_project_its_game_is_played(
    tmp_path: Path, game: str | None, version: str | None, expected: tuple[str, str]
) -> None:
    """What an option says wins."""
    (tmp_path / "games.toml").write_text(GAMES)
    assert chosen_game(tmp_path / "games.toml", game, version) == expected


def test_elsewhere_it_is_the_demo(tmp_path: Path) -> None:
    """A broken games file is no reason to play another game."""
    assert chosen_game(tmp_path / "games.toml", None, None) == ("arena", "1")
    (tmp_path / "games.toml").write_text("[[game]]\nname = 5\n")
    with pytest.raises(ConfigError, match="in quotes"):
        chosen_game(tmp_path / "games.toml", None, None)


def test_without_a_running_system_it_is_the_usual_port(tmp_path: Path) -> None:
    """A stand-alone server may be there."""
    assert url_of_running(tmp_path) == DEFAULT_URL


def test_a_login_comes_from_a_file_and_is_shown_nowhere(tmp_path: Path) -> None:
    """Everybody on a machine can read its command lines."""
    (tmp_path / "token").write_text("s3cret\n")
    secret = read_auth(tmp_path / "token")
    options = PlayOptions("http://x", "duel", "1", 1.0, ("udp",), 1.0, auth=secret, player_name="Ann")
    assert options.token == "s3cret"
    assert "s3cret" not in repr(options)
    (tmp_path / "empty").write_text(" \n")
    for name, text in (("empty", "is empty"), ("none", "No such file")):
        with pytest.raises(ConfigError, match=text):
            read_auth(tmp_path / name)


def test_the_options_of_a_player_are_explained() -> None:
    shown = CliRunner().invoke(app, ["play", "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    assert "--name" in shown
    assert "--auth-file" in shown
