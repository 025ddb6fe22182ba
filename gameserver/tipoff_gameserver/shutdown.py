"""Decides when a server stops: after `shutdown`, a drain or signals.

    ready ──drain, first signal──> draining ──last player left, grace over, second signal──> due
    ready, draining ──shutdown───> ended ──matchmaker told──> due

`Running.close` says what happens then, and in which order.
"""

from __future__ import annotations

import asyncio
import logging

from tipoff_gameserver.players.roster import Roster
from tipoff_gameserver.presence.interface import Presence
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.text import one_line
from tipoff_shared.primitives.waiting import wait_for_event
from tipoff_shared.records import LeaseState

log = logging.getLogger(__name__)

HEARD_TIMEOUT = 2.0
"""Seconds in which the matchmaker ends the sessions of a failed server, and stops it, before its players are sent away:
so their sessions end with the reason."""


class Shutdown:
    """The lease's `state`, and `due`, which is set when the server must be closed."""

    def __init__(self, tasks: Tasks, roster: Roster, presence: Presence) -> None:
        self.state = LeaseState.READY
        self.reason = ""
        """Why it is not ready, in one line."""
        self.due = asyncio.Event()
        self._tasks = tasks
        self._roster = roster
        self._presence = presence
        self._announcing: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._signalled = False
        roster.on_empty(self._last_player_left)

    def begin(self, reason: str, *, failed: bool = False) -> asyncio.Task[None]:
        """The match is over, or the game has `failed`: tell the matchmaker, then the server is due to close.
        Idempotent."""
        if self._announcing is None:
            log.info("shutting down: %s", reason)
            self.state = LeaseState.ENDED
            self.reason = one_line(reason)
            self._roster.stop_admitting()
            self._announcing = self._tasks.start(self._announce_end(failed), "shutdown")
        return self._announcing

    async def _announce_end(self, failed: bool) -> None:
        if not await self._presence.announce():
            log.warning("the matchmaker could not be told that this server ends; its lease will expire")
        elif failed and self._presence.reports and len(self._roster):
            await wait_for_event(self.due, HEARD_TIMEOUT)
        self.due.set()

    def drain(self, reason: str, grace: float | None) -> None:
        """Admit nobody; the server is due to close when the last player has left, or after `grace` seconds.
        Idempotent."""
        if self.state is LeaseState.READY:
            log.info("draining%s", f": {reason}" if reason else "")
            self.state = LeaseState.DRAINING
            self.reason = one_line(reason)
            self._roster.stop_admitting()
            self._tasks.start(self._announce_draining(), "announce draining")
        if not len(self._roster):
            self.due.set()
        elif grace is not None:
            if self._grace is not None:
                self._grace.cancel()
            self._grace = asyncio.get_running_loop().call_later(grace, self.due.set)

    async def _announce_draining(self) -> None:
        await self._presence.announce()  # if that fails, the lease's next refresh reports it

    def _last_player_left(self) -> None:
        if self.state is LeaseState.DRAINING:
            self.due.set()

    def signalled(self, name: str, grace: float) -> None:
        """The first signal drains; the second one makes the server close at once."""
        if self._signalled or self.state is LeaseState.ENDED:
            self.due.set()
        else:
            self._signalled = True
            self.drain(name, grace)

    def finish(self) -> None:
        """The server closes: admit nobody, and let no timer fire."""
        self._roster.stop_admitting()
        self.due.set()
        if self._grace is not None:
            self._grace.cancel()
