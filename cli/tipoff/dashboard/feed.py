"""What the dashboard's pages see: records of servers and sessions, what the matchmakers say, logs, errors and notes.

    KV buckets ── DemoFeed ──────────────┐
    launcher's logs ── report_games ── History ──> one bounded queue of server-sent events for each page
    matchmakers' status ─────────────────┘

Logs are read from the moment the first page opens; the matchmakers are asked while a page is open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from tipoff import __version__
from tipoff.dashboard.history import History
from tipoff.dashboard.options import DashboardOptions
from tipoff.operate.game_reports import report_games
from tipoff.operate.logs import LogLine
from tipoff.operate.status import ask_matchmakers
from tipoff_matchmaker_httpd.routes.demo import DemoFeed
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.admission.client_address import Address
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import Game, Games
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, GameserverLease, SessionRecord

log = logging.getLogger(__name__)

MOST_PAGES = 32
PAST_LINES = 200
"""Lines of each server from before the first page was opened."""
ASK_EVERY = 2.0
"""Seconds between two questions to the matchmakers while a page is open: as often as waiting players hear."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 5.0

_SHOWN: dict[type, tuple[str, ...]] = {
    DeploymentRecord: (
        *("id", "state", "game", "version", "orchestrator", "capacity", "created_at", "seats", "empty_since"),
        *("transports", "reason", "locked"),
    ),
    SessionRecord: (
        *("id", "state", "game", "version", "created_at", "deadline", "attempt", "deployment_id", "reason"),
        *("user_id", "name"),
    ),
    GameserverLease: (
        "deployment_id",
        "state",
        "players",
        "tick_rate",
        "tick_ms",
        "started_at",
        "reason",
        "pid",
    ),
}
"""What pages see of each record: no keys, tokens, credentials, owners or client ids."""


def developers_view(record: Any) -> dict[str, Any]:
    """A record as the dashboard shows it."""
    return {name: getattr(record, name) for name in _SHOWN[type(record)]}


class DashboardFeed:
    """The pages of one httpd and what they see."""

    def __init__(self, bus: Bus, options: DashboardOptions, games: Sequence[Game]) -> None:
        self._bus = bus
        self._options = options
        self._games = Games({game.key: game for game in games}, {}, Path())
        self._published = GamesFollower(buckets(bus).games, self._games, needs_keys=False)
        self._history = History()
        self._status: dict[str, Any] = {}
        self._opened = asyncio.Event()
        self.records = DemoFeed(MOST_PAGES, MOST_PAGES, view=developers_view, more=self._more)
        """Records, and the queues of the pages."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the system during the block."""
        async with self.records.running(self._bus), Tasks("dashboard") as tasks:
            tasks.start(self._ask_forever(), "status")
            tasks.start(self._published.run(), "published games")
            if self._options.has_launcher:
                tasks.start(self._read_logs(), "logs")
            try:
                yield
            finally:
                self.records.stop()

    def claim(self, address: Address) -> asyncio.Queue[bytes | None]:
        """A place for one more page; see `DemoFeed.claim`."""
        queue = self.records.claim(address)
        self._opened.set()
        return queue

    def _more(self) -> dict[str, Any]:
        return {
            "system": {
                "version": __version__,
                "project": self._options.project,
                "nats": self._options.nats,
                "options": self._options.command_options,
                "page": not self._options.at_root,
                "now": time.time(),
            },
            "games": [shown_game(game) for game in self._games.all()],
            "status": self._status,
        } | self._history.snapshot()

    async def _read_logs(self) -> None:
        await self._opened.wait()
        launcher = LauncherOrchestrator(self._bus)

        async def follow(backoff: Backoff) -> None:
            self._history.clear()
            await report_games(self._bus, launcher, self._games, self._note, self._line, tail=PAST_LINES)

        def failed(_: int, exc: Exception) -> None:
            log.warning("the dashboard reads the logs again: %s", exc)

        await run_forever(
            follow,
            first_pause=_FIRST_PAUSE,
            longest_pause=_LONGEST_PAUSE,
            retry_on=Exception,
            on_failure=failed,
        )

    def _line(self, line: LogLine) -> None:
        for event, data in self._history.line(line, time.monotonic(), time.time()):
            self.records.tell(event, data)

    def _note(self, text: str) -> None:
        self.records.tell("note", self._history.note(text, time.time()))

    async def _ask_forever(self) -> None:
        while True:
            await self._opened.wait()
            while self.records.listeners:
                try:
                    found = await ask_matchmakers(self._bus)
                    status: dict[str, Any] = {"matchmakers": [msgspec.to_builtins(one) for one in found]}
                except TipoffError as exc:
                    status = {"matchmakers": [], "problem": str(exc)}
                if status != self._status:
                    self._status = status
                    self.records.tell("status", status)
                await asyncio.sleep(ASK_EVERY)  # nothing announces why players wait
            self._opened.clear()


def shown_game(game: Game) -> dict[str, Any]:
    """A game as the dashboard shows it: nothing of its command, environment or keys."""
    return {
        "name": game.name,
        "version": game.version,
        "seats": game.seats,
        "min_ready": game.min_ready,
        "max_deployments": game.max_deployments,
        "orchestrator": game.orchestrator,
    }
