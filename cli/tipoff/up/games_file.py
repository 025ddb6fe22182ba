"""Takes over games.toml when it changes while `tipoff up` runs: checks it, writes missing keys, publishes it.

A file that cannot be taken over changes nothing: the terminal names its line and what to write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from tipoff.operate.admin import restart
from tipoff.operate.reload import publish, unfollowed
from tipoff.up.addresses import Reach
from tipoff.up.compose import write_missing_keys
from tipoff.up.options import UpOptions, check_games
from tipoff_orchestrator_client import edgegap
from tipoff_shared.errors import ConfigError, Malformed, TipoffError
from tipoff_shared.games import Game, Games
from tipoff_shared.games.current import difference
from tipoff_shared.games.toml import parse_games, read_games
from tipoff_shared.nats.connection import Bus

_SETTLE_MS = 200
"""Editors write a file in several steps."""
_FOLLOWED_WITHIN = 10.0


class GamesFile:
    """games.toml of a running `tipoff up`; `games` is what of it is in effect."""

    def __init__(
        self, options: UpOptions, games: Games, reach: Reach, bus: Bus, say: Callable[[str], None]
    ) -> None:
        self._options = options
        self._games = games
        self._reach = reach
        self._bus = bus
        self._say = say
        self._has_launcher = any(game.orchestrator == "launcher" for game in games.all())

    async def publish_first(self) -> None:
        """Publish it before the parts start. Raises `Unavailable`."""
        await publish(self._bus, self._games.all(), str(self._options.games), check_running=False)

    async def follow(self, stop: asyncio.Event) -> None:
        """Take it over whenever it changes, until cancelled or `stop` is set."""
        from watchfiles import awatch

        path = self._options.games.resolve()
        try:
            async for _ in awatch(
                path.parent,
                watch_filter=lambda _, changed: Path(changed).name == path.name,
                debounce=_SETTLE_MS,
                step=50,
                stop_event=stop,
                recursive=False,
            ):
                await self.take_over()
        except (OSError, RuntimeError) as exc:  # no room for more watches
            self._say(f"{path.name} is not watched any more: {exc}; `tipoff reload` takes it over")

    async def take_over(self) -> None:
        """Read and publish it. Raises nothing but what no operator can mend."""
        path = self._options.games
        try:
            found = parse_games(await asyncio.to_thread(read_games, path), str(path))
            change = difference(self._games.by_key(), {game.key: game for game in found})
            if not change:
                return
            check_games(self._options, found, self._reach)
            for game in change.present:
                self._check_orchestrator(game)
            await asyncio.to_thread(write_missing_keys, found, self._options.state_dir / "keys", keep=True)
            done = await publish(self._bus, found, str(path))
        except (ConfigError, Malformed) as exc:
            self._say(f"{path.name} is not taken over: {exc}. The games go on as they were")
            return
        except (TipoffError, OSError) as exc:
            self._say(f"{path.name} could not be taken over: {exc}; save it again")
            return
        before = self._games.by_key()
        self._games.replace({game.key: game for game in found}, {})
        self._say(f"{path.name} changed: {done.text}")
        try:
            for problem in await unfollowed(self._bus, done.revision, found, _FOLLOWED_WITHIN):
                self._say(problem)
            for game in change.changed:
                await self._renew(before[game.key], game)
        except TipoffError as exc:
            self._say(f"whether all parts follow is not known: {exc}")

    def _check_orchestrator(self, game: Game) -> None:
        """Raises `ConfigError` for a game that needs a part which does not run."""
        if game.orchestrator == "launcher" and not self._has_launcher:
            raise ConfigError("no launcher runs here, because no game needed one; start `tipoff up` again")
        if game.orchestrator in edgegap.NAMES:
            raise ConfigError(
                f"game {game.name!r} is at Edgegap, whose applications are read at the start; start `tipoff up` again"
            )

    async def _renew(self, before: Game, after: Game) -> None:
        """Servers that run were started with the old settings."""
        told = ("seats", "process", "docker", "token_timeout")
        if not any(getattr(before, name) != getattr(after, name) for name in told):
            return
        if self._options.reload:
            ended = await restart(self._bus, after.name, after.version, "games.toml changed")
            self._say(f"{after.name} {after.version} restarts ({len(ended.servers)} server(s))")
        else:
            self._say(
                f"servers of {after.name} {after.version} that run keep their old settings; "
                f"`tipoff rollout {after.name} {after.version}` replaces them"
            )
