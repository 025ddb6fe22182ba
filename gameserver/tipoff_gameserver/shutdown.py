"""How a server comes to its end: by `shutdown`, by draining, by signals.

Ready -> draining -> the end, or ready -> ended -> the end. What has to happen at the end itself, and in which order,
stands in `Running.close`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import LeaseState

log = logging.getLogger(__name__)

ANNOUNCE_TIMEOUT = 2.0
"""Seconds for telling the matchmaker before the server goes on."""


class Ending:
    """`close_doors` is called when nobody may come in any more, `players` says how many are there, `announce` tells
    the matchmaker the present state and returns whether that was done in time."""

    def __init__(
        self,
        tasks: Tasks,
        *,
        close_doors: Callable[[], None],
        players: Callable[[], int],
        announce: Callable[[float], Awaitable[bool]],
    ) -> None:
        self.state = LeaseState.READY
        self.reached = asyncio.Event()
        """Set when the server must be closed now."""
        self._tasks = tasks
        self._close_doors = close_doors
        self._players = players
        self._announce = announce
        self._shutdown: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._signalled = False

    def shutdown(self, reason: str) -> asyncio.Task[None]:
        """The match is over: the matchmaker is told, then the end is reached. Idempotent."""
        if self._shutdown is None:
            log.info("shutting down: %s", reason)
            self.state = LeaseState.ENDED
            self._close_doors()
            self._shutdown = self._tasks.start(self._tell_the_end(), "shutdown")
        return self._shutdown

    async def _tell_the_end(self) -> None:
        if not await self._announce(ANNOUNCE_TIMEOUT):
            log.warning("nobody could be told that this server ends; its lease will expire")
        self.reached.set()

    def drain(self, reason: str, grace: float | None) -> None:
        """Nobody new; the end is reached with the last player's leaving, or after `grace` seconds. Idempotent."""
        if self.state is LeaseState.READY:
            log.info("draining%s", f": {reason}" if reason else "")
            self.state = LeaseState.DRAINING
            self._close_doors()
            self._tasks.start(self._tell_draining(), "announce draining")
        if self._players() == 0:
            self.reached.set()
        elif grace is not None:
            if self._grace is not None:
                self._grace.cancel()
            self._grace = asyncio.get_running_loop().call_later(grace, self.reached.set)

    async def _tell_draining(self) -> None:
        await self._announce(ANNOUNCE_TIMEOUT)  # the lease's next refresh says it too

    def nobody_left(self) -> None:
        if self.state is LeaseState.DRAINING:
            self.reached.set()

    def signalled(self, name: str, grace: float) -> None:
        """The first signal drains, the second one ends it."""
        if self._signalled or self.state is LeaseState.ENDED:
            self.reached.set()
        else:
            self._signalled = True
            self.drain(name, grace)

    def over(self) -> None:
        """The server closes: no timer of ours is to fire any more."""
        self.reached.set()
        if self._grace is not None:
            self._grace.cancel()
