"""The command `tipoff play`: its options."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tipoff.projects import GAMES_FILE, NoUp, find_project, find_up
from tipoff.running_system import StateDir
from tipoff_shared.errors import ConfigError
from tipoff_shared.secret import Secret
from tipoff_shared.service import run

DEFAULT_URL = "http://127.0.0.1:3000"


def play_command(
    url: Annotated[
        str | None,
        typer.Option(
            help="URL of httpd, or of a stand-alone game server.",
            show_default="that of the running `tipoff up`",
        ),
    ] = None,
    game: Annotated[
        str | None,
        typer.Option(help="Name of the game.", show_default="the project's first game, else arena"),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="Version of the game.", show_default="that of the project's game, else 1"),
    ] = None,
    player_name: Annotated[
        str,
        typer.Option(
            "--name", help="What the player wants to be called, at most 48 bytes.", show_default=False
        ),
    ] = "",
    auth_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the player's login token, where the operator wants a login.", show_default=False
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="How long to play.")] = 10.0,
    bots: Annotated[int, typer.Option(help="Number of players at once.", min=1, max=1000)] = 1,
    transport: Annotated[
        str, typer.Option(help="udp, websocket, or both: the first that works.")
    ] = "udp,websocket",
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the connection.")] = 60.0,
    state_dir: StateDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Play for a while without a screen, as one player or many. Exit code 0 when every player was connected."""
    from tipoff.play.players import PlayOptions, parse_transports, play_many

    for name, value in (("--timeout", timeout), ("--seconds", seconds)):
        if not 0 < value < 1e6:
            raise typer.BadParameter(f"{name} {value}: a number of seconds above 0 is expected")
    project = find_project(Path.cwd())
    name, of = chosen_game((project or Path.cwd()) / GAMES_FILE, game, version)
    where = url or url_of_running(state_dir)
    auth = None if auth_file is None else read_auth(auth_file)
    options = PlayOptions(
        where, name, of, seconds, parse_transports(transport), timeout, auth=auth, player_name=player_name
    )
    run(play_many(options, bots=bots, as_json=as_json))


def read_auth(path: Path) -> Secret:
    """The login token in a file: a command line would show it to everybody on the machine. Raises `ConfigError`."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"--auth-file {path}: {exc}") from exc
    if not token:
        raise ConfigError(f"--auth-file {path}: the file is empty; the player's login token is expected")
    return Secret(token)


def url_of_running(state_dir: Path | None) -> str:
    """Where the `tipoff up` is that is meant; `DEFAULT_URL` where none runs: another program may be there. Raises
    `ConfigError` where only others run."""
    try:
        return find_up(state_dir).info.url
    except NoUp:
        return DEFAULT_URL
    except ConfigError:
        if state_dir is None and not os.environ.get("TIPOFF_STATE_DIR"):
            raise
        return DEFAULT_URL


def chosen_game(games_file: Path, game: str | None, version: str | None) -> tuple[str, str]:
    """Name and version: what the options say, else the first that fits in the project's games file, else `arena` and
    `1`. Raises `ConfigError` for a games file that cannot be read."""
    from tipoff_shared.games.toml import parse_games, read_games

    if (game is None or version is None) and games_file.exists():
        for known in parse_games(read_games(games_file), str(games_file)):
            if game in (None, known.name) and version in (None, known.version):
                return known.name, known.version
    return game or "arena", version or "1"
