"""The games that there are now: one `Games` for each process, which its parts read and are told of changes by.

    games.toml ──at the start──> Games ──get, all──> the parts
    a published revision ──GamesFollower──> replace ──GamesChange──> the parts that keep something for each game

Only a `GamesFollower` replaces them. What a part reads twice may differ, so it reads once for each decision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tipoff_shared.games.model import Game, GameKey
from tipoff_shared.netcode.keys import PrivateKey

_NAMED = 10
"""Games that a text about an unknown one names."""


@dataclass(frozen=True, slots=True)
class GamesChange:
    """What has changed. `changed`: as they are now; `removed`: as they were."""

    added: tuple[Game, ...] = ()
    changed: tuple[Game, ...] = ()
    removed: tuple[Game, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    @property
    def present(self) -> tuple[Game, ...]:
        """Those that are new or different, and there."""
        return self.added + self.changed


Listener: TypeAlias = Callable[[GamesChange], None]
"""Called in the event loop after a change; `get` and `all` have the new games already."""


def difference(before: Mapping[GameKey, Game], after: Mapping[GameKey, Game]) -> GamesChange:
    """What differs between two sets of games."""
    return GamesChange(
        added=tuple(game for key, game in after.items() if key not in before),
        changed=tuple(game for key, game in after.items() if key in before and before[key] != game),
        removed=tuple(game for key, game in before.items() if key not in after),
    )


class SomeGames(ABC):
    """All games, or those of one kind, as they are now."""

    @abstractmethod
    def get(self, name: str, version: str) -> Game | None:
        """The game of this name and version, or None."""

    @abstractmethod
    def all(self) -> list[Game]:
        """Every game."""

    @abstractmethod
    def subscribe(self, listener: Listener) -> None:
        """Call `listener` with each change."""

    def only(self, wanted: Callable[[Game], bool]) -> SomeGames:
        """Those that `wanted` accepts, as they are at each moment."""
        return _GamesOfAKind(self, wanted)

    def by_key(self) -> dict[GameKey, Game]:
        """Every game by its key, as a copy that stays as it is."""
        return {game.key: game for game in self.all()}

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and len(key) == 2 and self.get(*key) is not None

    def __len__(self) -> int:
        return len(self.all())

    def unknown(self, name: str, version: str) -> str:
        """What to say of a game that is not here: which there are."""
        known = [f"{game.name} {game.version}" for game in self.all()]
        more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
        return f"{name} {version} is not here, but {', '.join(known[:_NAMED])}{more}"


@dataclass(frozen=True, slots=True)
class OwnGames:
    """What a process's own games.toml says, with the private keys."""

    games: Mapping[GameKey, Game]
    keys: Mapping[GameKey, PrivateKey]


class Games(SomeGames):
    """The games of a process, with their private keys. `read_again`: reads the file that they came from once more,
    and the keys of some further games; it raises `ConfigError`."""

    def __init__(
        self,
        games: Mapping[GameKey, Game],
        keys: Mapping[GameKey, PrivateKey],
        base: Path,
        *,
        read_again: Callable[[Iterable[Game]], OwnGames] | None = None,
    ) -> None:
        self._games = dict(games)
        self._keys = dict(keys)
        self._first = OwnGames(dict(games), dict(keys))
        self._read_again = read_again
        self._listeners: list[Listener] = []
        self.base = base
        """Directory that relative paths start from."""

    def get(self, name: str, version: str) -> Game | None:
        return self._games.get((name, version))

    def all(self) -> list[Game]:
        return list(self._games.values())

    def subscribe(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def private_key(self, game: Game) -> PrivateKey:
        """The private key of `game`, also after its removal: players are still on its servers."""
        return self._keys[game.key]

    def read_own(self, also: Iterable[Game] = ()) -> OwnGames:
        """What the process's own file says now, and the keys of those games `also` that are not in it and have a key
        here. Blocks; raises `ConfigError`."""
        return self._first if self._read_again is None else self._read_again(also)

    def as_own(self) -> OwnGames:
        """The games and keys that there are now, in place of a file that cannot be read."""
        return OwnGames(self._games, self._keys)

    def replace(self, games: Mapping[GameKey, Game], keys: Mapping[GameKey, PrivateKey]) -> GamesChange:
        """Have exactly these from now on, and tell the listeners. A game keeps the key it had: its servers were started
        with that."""
        before, self._games = self._games, dict(games)
        self._keys = {**keys, **self._keys}
        change = difference(before, self._games)
        if change:
            for listener in self._listeners:
                listener(change)
        return change


class _GamesOfAKind(SomeGames):
    """See `only`. A game that changes its kind is added here, or removed."""

    def __init__(self, games: SomeGames, wanted: Callable[[Game], bool]) -> None:
        self._games = games
        self._wanted = wanted

    def get(self, name: str, version: str) -> Game | None:
        game = self._games.get(name, version)
        return game if game is not None and self._wanted(game) else None

    def all(self) -> list[Game]:
        return [game for game in self._games.all() if self._wanted(game)]

    def subscribe(self, listener: Listener) -> None:
        had = {game.key for game in self.all()}

        def changed(change: GamesChange) -> None:
            present = [game for game in change.present if self._wanted(game)]
            gone = [game for game in change.removed if game.key in had]
            gone += [game for game in change.changed if game.key in had and not self._wanted(game)]
            mine = GamesChange(
                added=tuple(game for game in present if game.key not in had),
                changed=tuple(game for game in present if game.key in had),
                removed=tuple(gone),
            )
            had.difference_update(game.key for game in gone)
            had.update(game.key for game in present)
            if mine:
                listener(mine)

        self._games.subscribe(changed)
