"""Says what happens to game servers, in the terminal of `tipoff up` and on its dashboard: they start, crash, or hang.

`GameReports` decides what is said; `report_games` reads events, logs and records for it. The mistakes of a first day
(a syntax error, no call of `main()`) show here, so each report names the server, what is wrong, and its last output.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from tipoff.operate.logs import LogLine, follow_logs
from tipoff_orchestrator_client.base import STOPPED_BY_FORCE, Deployment, OrchestratorError, RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import GameKey, SomeGames
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.text import one_line
from tipoff_shared.records import DeploymentState

UNANNOUNCED_AFTER = 5.0
"""Seconds after its start in which a server should have announced itself."""
AT_ONCE = 3.0
"""A server that has lived for less and ended without an error has hardly been a game."""
REPEAT_AFTER = 10.0
"""Seconds before an equal crash of the same game is reported again, with how many there were."""
_EXITED = "exited with code 0"
_LOOK_EVERY = 0.5
_LAST_LINES = 3
_KEPT = 1000
"""Servers and crashes that are remembered; the oldest go first."""
_NOT_YET = (DeploymentState.PLANNED, DeploymentState.STARTING)


@dataclass(slots=True)
class _Server:
    game: str
    version: str
    started_at: float
    asked: bool = False
    last: deque[str] = field(default_factory=lambda: deque(maxlen=_LAST_LINES))


@dataclass(slots=True)
class _Crash:
    told_at: float
    untold: int = 0


class GameReports:
    """Decides what is said. Pure; `now` is in monotonic seconds. `announce`: the games whose servers announce
    themselves, which those with `ready = "running"` do not."""

    def __init__(self, announce: Container[GameKey]) -> None:
        self._announce = announce
        self._servers: dict[str, _Server] = {}
        self._crashes: dict[tuple[str, str, str], _Crash] = {}

    def event(self, server: Deployment, now: float) -> str:
        """What to say of a start or an end; "" for what needs no words."""
        if server.state is RunState.RUNNING:
            if server.deployment_id in self._servers:
                return ""
            self._servers[server.deployment_id] = _Server(server.game, server.version, now)
            _forget_oldest(self._servers)
            return f"a server of {server.game} {server.version} starts ({server.deployment_id})"
        if server.state is not RunState.STOPPED:
            return ""
        known = self._servers.pop(server.deployment_id, None)
        asked_for = server.reason.startswith("stopped") and server.reason != STOPPED_BY_FORCE
        if asked_for or (server.reason == _EXITED and not self._at_once(known, now)):
            return ""
        return self._crash(server, now)

    def _at_once(self, server: _Server | None, now: float) -> bool:
        """Whether a server that should have announced itself ended before it could have served anybody."""
        return (
            server is not None
            and (server.game, server.version) in self._announce
            and now - server.started_at < AT_ONCE
        )

    def _crash(self, server: Deployment, now: float) -> str:
        key = (server.game, server.version, server.reason)
        crash = self._crashes.get(key)
        if crash is not None and now - crash.told_at < REPEAT_AFTER:
            crash.untold += 1
            return ""
        more = f", and {crash.untold} more since" if crash is not None and crash.untold else ""
        self._crashes[key] = _Crash(now)
        _forget_oldest(self._crashes)
        which = f"({server.deployment_id}{more})"
        if server.reason == STOPPED_BY_FORCE:
            return (
                f"a server of {server.game} {server.version} was stopped and had to be killed {which}: does its game "
                "hang, in a loop or a call that waits?"
            )
        if server.reason == _EXITED:
            return (
                f"a server of {server.game} {server.version} ended as soon as it had started {which}: does it call "
                "`GameServer(...).main()`?"
            )
        return f"a server of {server.game} {server.version} ended: {server.reason} {which}"

    def line(self, line: LogLine) -> None:
        """A server has written a line: its last ones are quoted."""
        if (server := self._servers.get(line.deployment_id)) is not None and not line.is_routine:
            server.last.append(line.text)

    def due(self, now: float) -> list[str]:
        """The servers that have run for a while and of which it is not known whether they have announced themselves;
        each is named once."""
        found = [
            deployment_id
            for deployment_id, server in self._servers.items()
            if not server.asked
            and (server.game, server.version) in self._announce
            and now - server.started_at >= UNANNOUNCED_AFTER
        ]
        for deployment_id in found:
            self._servers[deployment_id].asked = True
        return found

    def unannounced(self, deployment_id: str) -> str:
        """What to say of a server that has not announced itself; "" when it has ended meanwhile."""
        server = self._servers.get(deployment_id)
        if server is None:
            return ""
        said = one_line(" | ".join(server.last)) or "nothing"
        return (
            f"{deployment_id} runs but has not announced itself after {UNANNOUNCED_AFTER:.0f} s, so nobody is sent "
            f"there; does {server.game} {server.version} call `GameServer(...).main()`? Its last output: {said}"
        )


def _forget_oldest(known: dict[str, _Server] | dict[tuple[str, str, str], _Crash]) -> None:
    if len(known) > _KEPT:
        del known[next(iter(known))]  # type: ignore[arg-type] # either dictionary's own key


async def report_games(
    bus: Bus,
    launcher: LauncherOrchestrator,
    games: SomeGames,
    say: Callable[[str], None],
    show_line: Callable[[LogLine], None] | None,
    *,
    tail: int = 0,
) -> None:
    """Report what happens from now on, until cancelled. `show_line` hears of every line that a server writes, and of
    the last `tail` ones of each server that runs already or ended lately."""
    reports = GameReports(games.only(lambda game: game.ready != "running"))

    def line(line: LogLine) -> None:
        reports.line(line)
        if show_line is not None:
            show_line(line)

    async with asyncio.TaskGroup() as group:
        group.create_task(follow_logs(launcher, line, whole_since=time.time(), tail=tail))
        group.create_task(_follow_events(launcher, reports, say))
        group.create_task(_look_for_silent_ones(bus, reports, say))


async def _follow_events(
    launcher: LauncherOrchestrator, reports: GameReports, say: Callable[[str], None]
) -> None:
    try:
        async for server in launcher.events():
            if text := reports.event(server, time.monotonic()):
                say(text)
    except OrchestratorError as exc:
        say(f"crashes of game servers will not be reported here: {exc}")


async def _look_for_silent_ones(bus: Bus, reports: GameReports, say: Callable[[str], None]) -> None:
    deployments = buckets(bus).deployments
    while True:
        await asyncio.sleep(_LOOK_EVERY)  # for people, before any player
        for deployment_id in reports.due(time.monotonic()):
            try:
                found = await deployments.get(deployment_id)
            except Unavailable:
                continue  # NATS is away, which is said elsewhere
            if (
                found is not None
                and found.value.state in _NOT_YET
                and (text := reports.unannounced(deployment_id))
            ):
                say(text)
