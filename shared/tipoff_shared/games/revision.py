"""A published revision of games.toml: what all parts may know of the games, and how each part completes it. Pure.

    operator's games.toml ──public_settings──> GamesRevision in KV ──merge, with the part's own games.toml──> its games

A revision holds neither commands nor environments, images or keys: whoever could write it could otherwise run anything
on every host. Those each part takes from its own file (`OWN_SETTINGS`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tipoff_shared.errors import Malformed
from tipoff_shared.games.current import OwnGames, difference
from tipoff_shared.games.limits import complaint_about_limits
from tipoff_shared.games.model import Game, GameKey
from tipoff_shared.netcode.keys import PrivateKey

OWN_SETTINGS = ("process", "docker", "edgegap", "private_key_file", "private_key_env")
"""Settings of a game that are never published: how its servers are started, and its key."""
PUBLIC_SETTINGS = (
    "name",
    "version",
    "seats",
    "fill_rooms",
    "min_ready",
    "max_deployments",
    "empty_ttl",
    "start_timeout",
    "request_timeout",
    "orchestrator",
    "ready",
    "primary",
    "dialect",
    "protocol_id",
    "claim_time",
    "token_timeout",
    "resume_ttl",
    "bevygap",
)
"""Settings of a game that a revision holds."""
FIXED_SETTINGS = ("orchestrator", "ready", "dialect", "protocol_id", "bevygap")
"""Settings that servers and tokens have to agree on, so they cannot change while servers of the game run."""
MAX_BYTES = 200_000
"""Bytes of the longest revision."""


class GamesRevision(msgspec.Struct, frozen=True):
    """The value in KV. `games`: the public settings of each game, by their names in games.toml; a later release may
    have more of them. `published_at`: Unix seconds. Its number is the revision of its entry."""

    games: list[dict[str, Any]]
    published_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Merged:
    """What one part makes of a revision. `unusable`: the games it cannot serve, and why; `problems`: the same for the
    operator, with what cannot be read at all."""

    games: Mapping[GameKey, Game]
    keys: Mapping[GameKey, PrivateKey]
    problems: tuple[str, ...] = ()
    unusable: Mapping[GameKey, str] = field(default_factory=dict)


def new_revision(games: Iterable[Game], now: float) -> GamesRevision:
    """The revision that publishes these games. Raises `Malformed` when they are too many."""
    revision = GamesRevision([public_settings(game) for game in games], now)
    if (size := len(msgspec.json.encode(revision))) > MAX_BYTES:
        raise Malformed(
            f"{len(revision.games)} games are {size} bytes, and {MAX_BYTES} can be published; remove old versions"
        )
    return revision


def public_settings(game: Game) -> dict[str, Any]:
    """What everybody may know of `game`."""
    return {name: getattr(game, name) for name in PUBLIC_SETTINGS}


def published(revision: GamesRevision) -> tuple[dict[GameKey, Game], list[str]]:
    """The games of a revision, without what is never published, and what cannot be read of it: a later release may have
    written it, or nobody who should."""
    games: dict[GameKey, Game] = {}
    problems: list[str] = []
    for settings in revision.games:
        known = {name: settings[name] for name in PUBLIC_SETTINGS if name in settings}
        try:
            game = msgspec.convert(known, Game)
        except msgspec.ValidationError as exc:
            problems.append(f"game {settings.get('name')!r} {settings.get('version')!r}: {exc}"[:200])
            continue
        if (wrong := complaint_about_limits(game)) is not None:
            problems.append(f"game {game.name!r} {game.version!r}: {wrong[1]}"[:200])
            continue
        games[game.key] = game
    return games, problems


def merge(
    revision: GamesRevision, own: OwnGames, complaint: Callable[[Game], str], *, needs_keys: bool = True
) -> Merged:
    """The games of `revision`, each with what the part's own file says of its start and its key. `complaint(game)`: why
    this part cannot serve the game, "" when it can. `needs_keys`: not without its private key."""
    games, problems = published(revision)
    usable: dict[GameKey, Game] = {}
    unusable: dict[GameKey, str] = {}
    for key, game in games.items():
        mine = own.games.get(key)
        if mine is not None:
            game = msgspec.structs.replace(game, **{name: getattr(mine, name) for name in OWN_SETTINGS})
        if needs_keys and key not in own.keys:
            why = "its private key is not here: add the game to the games.toml of this part, with its key"
        else:
            why = complaint(game)
        if why:
            unusable[key] = why
            problems.append(f"game {game.name} {game.version}: {why}")
        else:
            usable[key] = game
    return Merged(usable, own.keys, tuple(problems), unusable)


def differences(revision: GamesRevision, own: Mapping[GameKey, Game]) -> list[str]:
    """What a file with the games `own` says otherwise than `revision`, for people."""
    games, _ = published(revision)
    public = {key: msgspec.convert(public_settings(game), Game) for key, game in own.items()}
    change = difference(games, public)
    found = [f"{game.name} {game.version} is not published" for game in change.added]
    found += [f"{game.name} {game.version} is published, and not in the file" for game in change.removed]
    return found + [
        f"{game.name} {game.version}: {', '.join(changes(games[game.key], game))}" for game in change.changed
    ]


def changes(before: Game, after: Game) -> list[str]:
    """The public settings that differ, like `seats 2 -> 4`."""
    return [
        f"{name} {getattr(before, name)} -> {getattr(after, name)}"
        for name in PUBLIC_SETTINGS
        if getattr(before, name) != getattr(after, name)
    ]


def fixed_changes(before: Game, after: Game) -> list[str]:
    """The names of settings that differ and cannot change while servers of the game run."""
    return [name for name in FIXED_SETTINGS if getattr(before, name) != getattr(after, name)]
