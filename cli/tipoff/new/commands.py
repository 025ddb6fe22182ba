"""The command `tipoff new NAME`: writes a small game from the files in `templates/`."""

from __future__ import annotations

import shlex
from enum import StrEnum
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.names import check_name

PLACEHOLDER = "NAME_OF_THE_GAME"


class Template(StrEnum):
    """What there is to start from."""

    HELLO = "hello"  # everybody is a dot: the least that can be played
    DUEL = "duel"  # two players, a score and a rematch


def new_command(
    name: Annotated[str, typer.Argument(help="Name of the game and of its new directory.")],
    template: Annotated[
        Template,
        typer.Option(help="`hello`: everybody is a dot. `duel`: a complete game for two, with a rematch."),
    ] = Template.HELLO,
    directory: Annotated[
        Path | None, typer.Option("--in", help="Where to make the directory.", show_default="here")
    ] = None,
) -> None:
    """Write a small game of your own: server, client, web page, games.toml and a test."""
    target = write_game(name, directory or Path.cwd(), template)
    typer.echo(f"{target}: README.md, server.py, client.py, web/index.html, games.toml, test_game.py")
    typer.echo(
        f"next: cd {shlex.quote(str(target))} && tipoff up --reload        then, in another terminal: python client.py"
    )


def write_game(name: str, directory: Path, template: Template = Template.HELLO) -> Path:
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
        _copy(files("tipoff.new") / "templates" / template.value, target, name)
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
