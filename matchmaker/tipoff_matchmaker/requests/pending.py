"""Handles each play request in hand once: repetitions of its id wait for its outcome.

A request is in hand from its message to its answer. It ends early when its session is ended, or when nobody waits for
its reply any longer (reply_interest.py): then it is let go, so that no seat is held for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from tipoff_matchmaker.errors import ShuttingDown
from tipoff_matchmaker.requests.reply_interest import ReplyInterest
from tipoff_matchmaker.sessions.state_machine import GivenUp, TakenOver
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import Conflict, NoServerInTime, TipoffError
from tipoff_shared.games import Game
from tipoff_shared.messages import SessionReady
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

Tell: TypeAlias = Callable[[str], Awaitable[None]]
"""Takes one progress text for people; returns soon."""


@dataclass(eq=False, slots=True, kw_only=True)
class PendingRequest:
    """One request in hand. Repetitions of its id listen to it and share its outcome.

    `timeout`: seconds until it must be answered. `user_id`, `name`: the player's, "" where unknown. `tell`: where
    progress goes. `repeated`: its record is read first, because there may be one. `broadcast`: every matchmaker got it,
    so the owner of its record answers, and the others make sure that somebody does.
    """

    session_id: str
    game: Game
    client_ip: str
    timeout: float
    tell: Tell
    user_id: str = ""
    name: str = ""
    repeated: bool = False
    broadcast: bool = False
    deadline: float = field(init=False)
    """When it must be answered, in the event loop's time."""
    waits: bool = field(default=False, init=False)
    """Whether its record is written as `requested` and ours to end."""
    _followers: dict[asyncio.Future[None], Tell] = field(default_factory=dict, init=False)
    _error: TipoffError | None = field(default=None, init=False)
    _last: str = field(default="", init=False)
    _timeout: asyncio.Timeout | None = field(default=None, init=False)
    _ended: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self.deadline = asyncio.get_running_loop().time() + self.timeout

    def within(self) -> asyncio.Timeout:
        """The time that is left, as `async with`. Not more than once at a time."""
        self._timeout = asyncio.timeout_at(self.deadline)
        return self._timeout

    def end(self, reason: str) -> None:
        """Its session was ended: its time is over at once, and `too_late` says why."""
        self._ended = reason
        self.deadline = asyncio.get_running_loop().time()
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self.deadline)

    async def report(self, text: str) -> None:
        """Send a progress text to its player, and to those of its repetitions."""
        self._last = text
        await self.tell(text)
        for tell in list(self._followers.values()):
            await tell(text)

    def check_deadline(self) -> None:
        """Raises `TimeoutError` when its time is over. `asyncio.timeout` does not always see to it: before Python 3.12
        `asyncio.wait_for`, by which nats-py waits, may lose the cancellation."""
        if asyncio.get_running_loop().time() >= self.deadline:
            raise TimeoutError

    def too_late(self) -> TipoffError:
        """The error for the player when the time is over."""
        if self._ended:
            return Conflict(f"{self._ended}; ask with a new request id")
        last = f" (last heard: {self._last})" if self._last else ""
        return NoServerInTime(f"no server became ready within {self.timeout:g} s{last}")

    async def follow(self, first: PendingRequest) -> None:
        """Wait until `first`, which has the same id, is answered, and hear its progress until then. Raises what it was
        answered with, if that was an error."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first._followers[future] = self.tell
        try:
            await future
        finally:
            del first._followers[future]
        if first._error is not None:
            raise first._error

    def finish(self, error: TipoffError | None) -> None:
        """It is answered: wake its repetitions. `error`: what it was answered with, if not with a seat."""
        self._error = error
        for future in self._followers:
            if not future.done():
                future.set_result(None)


class PendingRequests:
    """The requests in hand, by session. Everything that takes requests calls `play`.

    `place` finds the seat of one request (placement.py). It raises a `TipoffError`, or `TimeoutError`.
    """

    def __init__(
        self,
        place: Callable[[PendingRequest], Awaitable[SessionReady]],
        sessions: SessionStore,
        tasks: Tasks,
        settings: Settings,
    ) -> None:
        self._place = place
        self._sessions = sessions
        self._tasks = tasks
        self._instance = settings.instance
        self._pending: dict[str, PendingRequest] = {}
        self._interest = ReplyInterest()
        self._letting_go: set[asyncio.Task[None]] = set()

    async def settle(self, timeout: float) -> None:
        """Return when the requests let go are written down, so that other matchmakers can go on with them; after at
        most `timeout` seconds."""
        if self._letting_go:
            await asyncio.wait(self._letting_go, timeout=timeout)

    def end(self, session_id: str, reason: str) -> None:
        """The session was ended: a request that waits for its seat here is answered with `reason`."""
        request = self._pending.get(session_id)
        if request is not None:
            request.end(reason)

    def reply_unread(self, inbox_prefix: str) -> None:
        """The client behind these reply inboxes has disconnected: its requests are let go, unless others wait, too."""
        self._interest.lost(inbox_prefix)

    async def play(self, request: PendingRequest, inbox: str = "") -> SessionReady:
        """A seat and a token, or a `TipoffError`, within `request.timeout` seconds. Raises `AnsweredElsewhere` when a
        broadcast request is another matchmaker's to answer. `inbox`: where the reply is read; when nobody reads there
        any longer the call is cancelled. Cancelling is safe: the request is let go."""
        if not inbox:
            return await self._play(request)
        task = asyncio.current_task()
        assert task is not None  # a coroutine always runs in one
        self._interest.add(inbox, request.session_id, task)
        try:
            return await self._play(request)
        finally:
            self._interest.remove(inbox, request.session_id, task)

    async def _play(self, request: PendingRequest) -> SessionReady:
        first = self._pending.get(request.session_id)
        if first is not None and first.game.key != request.game.key:
            raise Conflict("this request id is in use for another game")
        if first is not None and first.user_id and first.user_id != request.user_id:
            raise Conflict("this request id is in use by another player")
        if first is None or (first.broadcast and not request.broadcast):
            # (A broadcast request in hand may be one that only watches over another matchmaker's work.)
            return await self._lead(request)
        try:
            async with request.within():
                await request.follow(first)
                request.repeated, request.broadcast = True, False
                return await self._place(request)
        except TimeoutError:
            raise first.too_late() from None

    async def _lead(self, request: PendingRequest) -> SessionReady:
        """Handle the request; repetitions of its id wait for the outcome."""
        session_id = request.session_id
        self._pending[session_id] = request
        error: TipoffError | None = None
        try:
            async with request.within():
                return await self._place(request)
        except TimeoutError:
            error = request.too_late()
            raise error from None
        except TipoffError as exc:
            error = exc
            raise
        except BaseException:  # cancelled, or a fault
            error = ShuttingDown()
            raise
        finally:
            if self._pending.get(session_id) is request:
                del self._pending[session_id]
            request.finish(error)
            if request.waits and error is not None:
                me = self._instance
                event = TakenOver("", me) if isinstance(error, ShuttingDown) else GivenUp(str(error), me)
                task = self._tasks.start(self._let_go(session_id, event), f"let go/{session_id}")
                self._letting_go.add(task)
                task.add_done_callback(self._letting_go.discard)

    async def _let_go(self, session_id: str, event: GivenUp | TakenOver) -> None:
        try:
            await self._sessions.apply(session_id, event)
        except TipoffError as exc:
            log.info("session %s is left to its deadline: %s", session_id, exc)
