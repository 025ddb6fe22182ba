"""`tipoff new NAME`: a small game of one's own, from the files in `template/`."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from tipoff_shared.errors import ConfigError, Malformed
from tipoff_shared.names import check_name

PLACEHOLDER = "NAME_OF_THE_GAME"


def write_game(name: str, directory: Path) -> Path:
    """Write the template to `directory/name`; the path made. Raises `ConfigError` when it exists or the name is bad."""
    try:
        check_name(name, "the name of a game")
    except Malformed as exc:
        raise ConfigError(str(exc)) from exc
    target = directory / name
    if target.exists():
        raise ConfigError(f"{target} exists; choose another name, or another place with --in")
    try:
        _copy(files("tipoff") / "template", target, name)
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
