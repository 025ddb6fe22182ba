"""Reads games.toml and the games' private keys. An error names the file, the line and what is allowed."""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from tipoff_shared.errors import ConfigError
from tipoff_shared.games.current import Games, OwnGames
from tipoff_shared.games.limits import complaint_about
from tipoff_shared.games.model import DockerPort, DockerSpec, EdgegapSpec, Game, GameKey, ProcessSpec
from tipoff_shared.names import key_token
from tipoff_shared.netcode.errors import NetcodeError
from tipoff_shared.netcode.keys import PrivateKey

_TYPES = {
    "str": 'text in quotes is expected, like {field} = "1"',
    "int": "a whole number without quotes is expected, like {field} = 4",
    "float": "a number without quotes is expected, like {field} = 2.5",
    "bool": "true or false is expected, without quotes: {field} = true",
    "array": 'a list is expected, like {field} = ["python", "server.py"]',
}
"""What to write, by the type that msgspec names."""
_EARLIER_NAMES = {"claim_time": "token_lifetime"}


class _File(msgspec.Struct, forbid_unknown_fields=True):
    game: list[Game]


def load_games(
    path: Path,
    *,
    environ: Mapping[str, str] | None = None,
    missing_keys: Literal["refuse", "random"] = "refuse",
) -> Games:
    """Read and check `path`. Raises `ConfigError` with file, line and what is allowed.

    `missing_keys="random"` makes a random private key where none is configured, for the demo.
    """
    read = functools.partial(_read, path, os.environ if environ is None else environ, missing_keys)
    own = read(())
    return Games(own.games, own.keys, path.resolve().parent, read_again=read)


def _read(
    path: Path, environ: Mapping[str, str], missing_keys: Literal["refuse", "random"], also: Iterable[Game]
) -> OwnGames:
    text = read_games(path)
    games = parse_games(text, str(path))
    keys: dict[GameKey, PrivateKey] = {}
    for index, game in enumerate(games):
        key = _private_key(game, path, environ)
        if key is None and missing_keys == "random":
            key = PrivateKey.generate()
        if key is None:
            raise ConfigError(
                f"{path}:{_line_of(text, index, None)}: game {game.name!r} has no private key; "
                "set private_key_file or private_key_env (64 hex digits), or TIPOFF_KEYS_DIR"
            )
        keys[game.key] = key
    for game in also:
        if game.key not in keys and (key := _private_key(game, path, environ)) is not None:
            keys[game.key] = key
    return OwnGames({game.key: game for game in games}, keys)


def read_games(path: Path) -> str:
    """The text of a games.toml; raises `ConfigError` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}; `tipoff new NAME` writes an example") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: not UTF-8 at byte {exc.start}") from exc


def parse_games(text: str, where: str = "games.toml") -> list[Game]:
    """The games in `text`, checked; raises `ConfigError`. Reads no other file."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{where}: {exc}") from exc
    _rename_settings(data, text, where)
    try:
        games = msgspec.convert(data, _File).game
    except msgspec.ValidationError as exc:
        index, field = _place(str(exc))
        raise ConfigError(f"{where}:{_line_of(text, index, field)}: {_explain(str(exc), field)}") from exc
    if not games:
        raise ConfigError(f"{where}: no [[game]] in it")
    seen: set[GameKey] = set()
    for index, game in enumerate(games):
        if complaint := complaint_about(game):
            field, wrong = complaint
            raise ConfigError(f"{where}:{_line_of(text, index, field)}: {wrong}")
        if game.key in seen:
            raise ConfigError(
                f"{where}:{_line_of(text, index, None)}: game {game.name!r} version {game.version!r} "
                "is defined twice"
            )
        seen.add(game.key)
    return games


def _rename_settings(data: dict[str, Any], text: str, where: str) -> None:
    """Read a setting of an earlier release under its new name, or refuse it with what to write instead."""
    games = data.get("game")
    for index, game in enumerate(games if isinstance(games, list) else ()):
        if not isinstance(game, dict):
            continue
        if "claim_timeout" in game:
            raise ConfigError(
                f"{where}:{_line_of(text, index, 'claim_timeout')}: claim_timeout is no longer a setting: a seat waits "
                f"for its player as long as the connect token is good, which is claim_time "
                f"({Game('', '').claim_time} s); remove it"
            )
        for name, earlier in _EARLIER_NAMES.items():
            if earlier in game and name in game:
                raise ConfigError(
                    f"{where}:{_line_of(text, index, earlier)}: {earlier} is the earlier name of {name}, which is set, "
                    f"too; remove {earlier}"
                )
            if earlier in game:
                game[name] = game.pop(earlier)


def key_file(directory: Path, game: Game) -> Path:
    """Where `TIPOFF_KEYS_DIR` holds the key of `game`."""
    return directory / f"{key_token(game.name)}.{key_token(game.version)}.key"


def _private_key(game: Game, path: Path, environ: Mapping[str, str]) -> PrivateKey | None:
    source = ""
    try:
        if game.private_key_env and (value := environ.get(game.private_key_env, "")):
            source = f"the variable {game.private_key_env}"
            return PrivateKey.parse(value)
        if game.private_key_file:
            file = path.resolve().parent / game.private_key_file
            source = str(file)
            return PrivateKey.parse(file.read_text().strip())
        if directory := environ.get("TIPOFF_KEYS_DIR", ""):
            file = key_file(Path(directory), game)
            source = str(file)
            if file.exists():
                return PrivateKey.parse(file.read_text().strip())
    except OSError as exc:
        raise ConfigError(f"{path}: the key of game {game.name!r}: {exc}") from exc
    except (ValueError, NetcodeError):
        raise ConfigError(  # without the cause: it may quote the key
            f"{path}: the key of game {game.name!r} in {source} is not 64 hex digits or 32 numbers, or is all zeros"
        ) from None
    return None


def _place(message: str) -> tuple[int, str | None]:
    """Which [[game]] and which field a msgspec message speaks of: `$.game[1].seats`, `field `x``."""
    index = int(found[1]) if (found := re.search(r"\$\.game\[(\d+)\]", message)) else 0
    if found := re.search(r"unknown field `(\w+)`", message):
        return index, found[1]
    if found := re.search(r"\$\.game\[\d+\]\.(?:\w+\.)*(\w+)", message):
        return index, found[1]
    return index, None


def _explain(message: str, field: str | None) -> str:
    if "unknown field" in message:
        allowed = Game.__struct_fields__
        if ".process" in message:
            allowed = ProcessSpec.__struct_fields__
        elif ".docker" in message:
            allowed = (DockerPort if ".ports" in message else DockerSpec).__struct_fields__
        elif ".edgegap" in message:
            allowed = EdgegapSpec.__struct_fields__
        if "$.game" not in message:
            allowed = ("game",)
        return f"{field!r} is not known here; allowed are {', '.join(allowed)}"
    if "`array`, got `object` - at `$.game`" in message:
        return "write [[game]], in double brackets: there may be several"
    if (
        field
        and (found := re.search(r"Expected `(\w+)`(?: \| null)?, got `(\w+)`", message))
        and found[1] in _TYPES
    ):
        return f"{field}: {_TYPES[found[1]].format(field=field)}"
    text = re.sub(r" - at `\$[^`]*`", "", message)
    return f"{field}: {text}" if field else text


def _line_of(text: str, index: int, field: str | None) -> int:
    """Line of `field` within the index-th [[game]], or of that header."""
    lines = text.splitlines()
    headers = [n for n, line in enumerate(lines) if re.match(r"\s*\[\[\s*game\s*\]\]", line)]
    if index >= len(headers):
        start, end = 0, len(lines)
    else:
        start = headers[index]
        end = headers[index + 1] if index + 1 < len(headers) else len(lines)
    if field is not None:
        earlier = f"|{_EARLIER_NAMES[field]}" if field in _EARLIER_NAMES else ""
        for n in range(start, end):
            if re.match(rf"\s*({re.escape(field)}{earlier})\s*=|\s*\[(\w+\.)*{re.escape(field)}\]", lines[n]):
                return n + 1
        for n, line in enumerate(lines):  # outside any [[game]]
            if re.match(rf"\s*{re.escape(field)}\s*=|\s*\[+{re.escape(field)}\]+", line):
                return n + 1
    return start + 1
