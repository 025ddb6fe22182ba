"""Reads facts about games.toml and the keys. Shows no key."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game
from tipoff_shared.games.toml import key_file, load_games, parse_games, read_games


@dataclass(frozen=True, slots=True)
class GamesFacts:
    """The games and their keys. `error`: games.toml cannot be used; `key_error`: the games can be read, a key cannot.
    `open_keys`: key files that other users of this host can read; `shared_keys`: games with equal keys."""

    path: Path
    games: tuple[Game, ...] = ()
    error: str = ""
    key_error: str = ""
    open_keys: tuple[str, ...] = ()
    shared_keys: tuple[str, ...] = ()


def look_at_games(path: Path, keys_dir: Path | None, environ: Mapping[str, str]) -> GamesFacts:
    """The games of the file `path`, with keys from `keys_dir`, else from `environ`."""
    try:
        games = tuple(parse_games(read_games(path), str(path)))
    except ConfigError as exc:
        return GamesFacts(path, error=str(exc))
    env = dict(environ) | ({"TIPOFF_KEYS_DIR": str(keys_dir)} if keys_dir else {})
    try:
        loaded = load_games(path, environ=env)
    except ConfigError as exc:
        return GamesFacts(path, games, key_error=str(exc))
    keys = {game.key: loaded.private_key(game).reveal() for game in games}
    counted = Counter(keys.values())
    shared = tuple(f"{name} {version}" for (name, version), key in keys.items() if counted[key] > 1)
    files = [_key_path(path, game, env) for game in games]
    return GamesFacts(
        path,
        games,
        open_keys=tuple(str(file) for file in files if file and _is_open(file)),
        shared_keys=shared,
    )


def _key_path(path: Path, game: Game, env: Mapping[str, str]) -> Path | None:
    if game.private_key_env and env.get(game.private_key_env):
        return None
    if game.private_key_file:
        return path.resolve().parent / game.private_key_file
    return key_file(Path(env["TIPOFF_KEYS_DIR"]), game) if env.get("TIPOFF_KEYS_DIR") else None


def _is_open(file: Path) -> bool:
    """Whether other users may read the file and enter every directory on the way to it."""
    try:
        if not os.stat(file).st_mode & stat.S_IROTH:
            return False
        return all(os.stat(directory).st_mode & stat.S_IXOTH for directory in file.resolve().parents)
    except OSError:
        return False
