"""Closes a server to new players and opens it again, and tells the matchmaker."""

from __future__ import annotations

import asyncio
import logging

from tipoff_gameserver.presence.interface import Presence
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)


class Lock:
    """Whether the server is closed to new players. Whoever has a seat, claimed or not, keeps it: the matchmaker, which
    gives out the seats, gives out no more."""

    def __init__(self, tasks: Tasks, presence: Presence) -> None:
        self.locked = False
        self._tasks = tasks
        self._presence = presence
        self._announcing: asyncio.Task[None] | None = None

    def set(self, locked: bool) -> asyncio.Task[None]:
        """Close or open the server; the task ends when the lease says so. Idempotent."""
        if self._announcing is None or locked != self.locked:
            if locked != self.locked:
                log.info("%s new players", "closed to" if locked else "open to")
            self.locked = locked
            self._announcing = self._tasks.start(self._announce(), "announce lock")
        return self._announcing

    async def _announce(self) -> None:
        if not await self._presence.announce():
            log.warning("the matchmaker does not know yet who may come in; it is told when NATS is back")
