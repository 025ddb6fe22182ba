"""All play requests in hand: those with one id are seen through once, and share the outcome."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from tipoff_matchmaker.requests.pending import Ask, Running, Stopping, Tell
from tipoff_matchmaker.requests.placement import Allocations
from tipoff_matchmaker.sessions.machine import GivenUp, TakenOver
from tipoff_matchmaker.sessions.store import SessionBook
from tipoff_shared.errors import TipoffError
from tipoff_shared.messages import SessionReady
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)


class Plays:
    """`play` is what asking to play is for all who take requests (requests.py, gensession.py)."""

    def __init__(self, instance: str, allocations: Allocations, book: SessionBook, tasks: Tasks) -> None:
        self._instance = instance
        self._allocations = allocations
        self._book = book
        self._tasks = tasks
        self._running: dict[str, Running] = {}
        self._letting_go: set[asyncio.Task[None]] = set()

    async def settle(self, timeout: float) -> None:
        """Until what was let go is written down, so that others can go on with it."""
        if self._letting_go:
            await asyncio.wait(self._letting_go, timeout=timeout)

    def end(self, session_id: str, reason: str) -> None:
        """Its record has been closed: whoever waits for a seat here is told `reason`."""
        running = self._running.get(session_id)
        if running is not None:
            running.end(reason)

    async def play(self, ask: Ask, tell: Tell) -> SessionReady:
        """A seat and a token, or a `TipoffError`, within `ask.timeout` seconds. Raises `Elsewhere` when a
        broadcast request is another matchmaker's to answer."""
        running = self._running.get(ask.session_id)
        if running is None or (running.ask.broadcast and not ask.broadcast):
            # (A broadcast request in hand may be one that only watches over another matchmaker's work.)
            return await self._lead(ask, tell)
        try:
            async with asyncio.timeout(ask.timeout):
                await running.done(tell)
                return await self._allocations.seat(
                    Running(replace(ask, repeated=True, broadcast=False), tell)
                )
        except TimeoutError:
            raise running.too_late() from None

    async def _lead(self, ask: Ask, tell: Tell) -> SessionReady:
        """See the request through; others with the same id wait for the outcome."""
        running = self._running[ask.session_id] = Running(ask, tell)
        error: TipoffError | None = Stopping("this matchmaker is stopping, ask again", retry_after=1)
        try:
            async with running.within():
                ready = await self._allocations.seat(running)
            error = None
            return ready
        except TimeoutError:
            error = running.too_late()
            raise error from None
        except TipoffError as exc:
            error = exc
            raise
        finally:
            if self._running.get(ask.session_id) is running:
                del self._running[ask.session_id]
            running.finish(error)
            if running.waits and error is not None:
                me = self._instance
                leave = TakenOver("", me) if isinstance(error, Stopping) else GivenUp(str(error), me)
                task = self._tasks.start(self._let_go(ask.session_id, leave), f"let go/{ask.session_id}")
                self._letting_go.add(task)
                task.add_done_callback(self._letting_go.discard)

    async def _let_go(self, session_id: str, event: GivenUp | TakenOver) -> None:
        try:
            await self._book.apply(session_id, event)
        except TipoffError as exc:
            log.info("session %s is left to its deadline: %s", session_id, exc)
