"""Publishes games.toml as a revision that all parts follow, and finds out which of them do, for `tipoff reload` and
`tipoff up`.

    games.toml ──checked──> bucket `games` ──> matchmakers and launcher, each with commands and keys of its own file
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping

import msgspec

from tipoff.operate.status import ask_matchmakers
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import ConfigError, Malformed, Unavailable
from tipoff_shared.games import Game, GameKey
from tipoff_shared.games.current import difference
from tipoff_shared.games.revision import changes, fixed_changes, new_revision, public_settings, published
from tipoff_shared.games_follower import CURRENT
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import DeploymentState

_ASK_AGAIN = 0.1


class Published(msgspec.Struct, frozen=True):
    """What was published. `changed`: game -> its settings that differ, like `seats 2 -> 4`. `first`: there was no
    revision before, so that every game is in `added`."""

    revision: int
    added: list[str]
    changed: dict[str, list[str]]
    removed: list[str]
    first: bool = False

    @property
    def text(self) -> str:
        """In one line, for people."""
        parts = [f"new: {', '.join(self.added)}"] if self.added else []
        parts += [f"{game}: {', '.join(what)}" for game, what in self.changed.items()]
        parts += [f"removed: {', '.join(self.removed)}"] if self.removed else []
        return (
            f"revision {self.revision} is published: {'; '.join(parts) or 'the public settings are the same'}"
        )


async def publish(
    bus: Bus, games: Iterable[Game], where: str, *, check_running: bool = True, clock: float | None = None
) -> Published:
    """Publish the games of the file `where`. Raises `ConfigError` for a change that servers which run forbid,
    `Malformed` for too many games, `Unavailable`. With `check_running` False there are no servers yet."""
    kv = buckets(bus)
    new = {game.key: msgspec.convert(public_settings(game), Game) for game in games}
    revision = new_revision(new.values(), time.time() if clock is None else clock)
    before: Mapping[GameKey, Game] = {}
    unreadable = False
    try:
        latest = await kv.games.latest(CURRENT)
    except Malformed:
        latest, unreadable = None, True
    if latest is not None and latest.value is not None:
        before, _ = published(latest.value)
    if check_running:
        await _refuse_fixed(bus, before, new, where)
    try:
        if unreadable:  # so no part follows it, and nothing of it is worth keeping
            number = await kv.games.put(CURRENT, revision)
        else:
            number = await kv.games.update(CURRENT, revision, 0 if latest is None else latest.revision)
    except LostRace as exc:
        raise Unavailable("somebody else has just published games; look at them, and try again") from exc
    change = difference(before, new)
    return Published(
        number,
        [_name(game) for game in change.added],
        {_name(game): changes(before[game.key], game) for game in change.changed},
        [_name(game) for game in change.removed],
        first=not before,
    )


async def _refuse_fixed(
    bus: Bus, before: Mapping[GameKey, Game], after: Mapping[GameKey, Game], where: str
) -> None:
    fixed = {
        key: names
        for key, game in after.items()
        if key in before and (names := fixed_changes(before[key], game))
    }
    if not fixed:
        return
    running = {
        (entry.value.game, entry.value.version)
        for entry in (await buckets(bus).deployments.list()).values()
        if entry.value.state is not DeploymentState.GONE
    }
    for key, names in fixed.items():
        if key in running:
            name, version = key
            raise ConfigError(
                f"{where}: {', '.join(names)} of game {name!r} version {version!r} cannot change while its servers "
                "run, because they were started with the other value; give the changed game a new version"
            )


async def unfollowed(bus: Bus, revision: int, games: Iterable[Game], timeout: float) -> list[str]:
    """Wait until all parts follow `revision`, at most `timeout` seconds; then which do not, and what keeps them from
    serving it, a text for people each. Raises `Unavailable` while NATS is away."""
    launched = any(game.orchestrator == "launcher" for game in games)
    deadline = time.monotonic() + timeout
    while True:
        behind, problems = await _look(bus, revision, LauncherOrchestrator(bus) if launched else None)
        if not behind or time.monotonic() >= deadline:
            return behind + problems
        await asyncio.sleep(_ASK_AGAIN)  # for an operator, not on a player's path


async def _look(
    bus: Bus, revision: int, launcher: LauncherOrchestrator | None
) -> tuple[list[str], list[str]]:
    behind: list[str] = []
    problems: list[str] = []
    matchmakers = await ask_matchmakers(bus)
    if not matchmakers:
        behind.append("no matchmaker answers; those that start later read the revision")
    for one in matchmakers:
        problems += [f"matchmaker {one.instance}: {problem}" for problem in one.games_problems]
        if one.games_revision < 0:
            behind.append(
                f"matchmaker {one.instance} is of an earlier release and reads only its own games.toml"
            )
        elif one.games_revision < revision:
            behind.append(f"matchmaker {one.instance} follows revision {one.games_revision} yet")
    if launcher is not None:
        try:
            follows, said = await launcher.games()
        except OrchestratorError as exc:
            behind.append(f"the launcher does not say which games it has, or is of an earlier release: {exc}")
        else:
            problems += [f"launcher: {problem}" for problem in said]
            if follows < revision:
                behind.append(f"the launcher follows revision {follows} yet")
    return behind, problems


def _name(game: Game) -> str:
    return f"{game.name} {game.version}"
