"""The command `tipoff new NAME`: writes a small game from the files in `template/`."""

from __future__ import annotations

import shlex
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.names import check_name

PLACEHOLDER = "NAME_OF_THE_GAME"


def new_command(
    name: Annotated[str, typer.Argument(help="Name of the game and of its new directory.")],
    directory: Annotated[
        Path | None, typer.Option("--in", help="Where to make the directory.", show_default="here")
    ] = None,
) -> None:
    """Write a small game of your own: server, client, web page, games.toml and a test."""
    target = write_game(name, directory or Path.cwd())
    typer.echo(f"{target}: server.py, client.py, web/index.html, games.toml, test_game.py")
    typer.echo(
        f"next: cd {shlex.quote(str(target))} && tipoff up        then, in another terminal: python client.py"
    )


def write_game(name: str, directory: Path) -> Path:
    """Write the template to `directory/name`, and return that path.

    Raises `ConfigError` when it exists, cannot be written, or the name is not allowed.
    """
    try:
        check_name(name, "the name of a game")
    except Malformed as exc:
        raise ConfigError(str(exc)) from exc
    target = directory / name
    if target.exists():
        raise ConfigError(f"{target} exists; choose another name, or another place with --in")
    try:
        _copy(files("tipoff.new") / "template", target, name)
    except OSError as exc:
        raise ConfigError(f"{target} cannot be written: {exc.strerror or exc}") from exc
    return target


def _copy(source: Traversable, target: Path, name: str) -> None:
    target.mkdir(parents=True)
    for item in source.iterdir():
        if item.is_dir():
            if item.name != "__pycache__":
                _copy(item, target / item.name, name)
        else:
            (target / item.name).write_text(item.read_text().replace(PLACEHOLDER, name))
