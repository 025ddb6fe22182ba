"""Brings a player whose connection was lost back to the same seat: asks the matchmaker for a fresh token, and dials.

connected ──lost──> asking ──token──> dialling ──> connected
                       │ ^                │
                       │ └─ again, soon ──┘
                       └── the seat is gone, or it takes too long ──> over (`ServerLost`)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tipoff_client_sdk.connection import Channel, Player
from tipoff_client_sdk.errors import ConnectionFailed, ServerLost
from tipoff_client_sdk.inbox import Ending, Inbox, Line
from tipoff_client_sdk.matchmaking import Progress, ProgressCallback, Stage
from tipoff_shared.errors import (
    Conflict,
    Malformed,
    NotAllowed,
    NotAuthenticated,
    TipoffError,
    UnknownGame,
)
from tipoff_shared.messages import SessionReady
from tipoff_shared.primitives.retry import Backoff
from tipoff_shared.primitives.text import describe, one_line

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
NOTICED_LATER = 20.0
"""Seconds by which the server may notice the loss later than the client: its hold begins then."""
CLOSED_FOR = 3.0
"""Seconds with closed ports only after which the server's process counts as gone."""
_FINAL = (Conflict, NotAllowed, NotAuthenticated, UnknownGame, Malformed)
"""Answers of the matchmaker that asking again does not change."""

Ask = Callable[[float], Awaitable[SessionReady]]
"""Asks for the seat, for at most so many seconds."""
Dial = Callable[[SessionReady, Line, float], Awaitable[Channel]]
"""Connects by a token, for at most so many seconds."""


class Reconnector:
    """Keeps one player connected. `run` does the work, as a task beside the game; `line` is for the first dial, and
    `begin` for its outcome. `patience`: seconds for which it tries after each loss."""

    def __init__(
        self,
        inbox: Inbox,
        ask: Ask,
        dial: Dial,
        report: ProgressCallback,
        *,
        session_id: str,
        patience: float,
    ) -> None:
        self._inbox = inbox
        self._ask = ask
        self._dial = dial
        self._report = report
        self._session_id = session_id
        self._patience = patience
        self._player: Player | None = None
        self._lost = asyncio.Event()
        self._ending = Ending("")

    def line(self) -> Line:
        """The way into the inbox for one connection."""
        return Line(self._inbox, self._connection_lost)

    def begin(self, player: Player) -> None:
        """The first connection is there."""
        self._player = player
        if self._lost.is_set():
            player.lost()

    def _connection_lost(self, ending: Ending) -> None:
        self._ending = ending
        self._lost.set()
        if self._player is not None:
            self._player.lost()

    async def run(self) -> None:
        """Reconnect after each loss, until the end of the player or cancelled."""
        try:
            await self._run()
        except Exception as exc:  # a fault here must end the game, not leave it waiting
            log.exception("reconnecting failed")
            text = f"the client failed: {describe(exc)}"
            self._inbox.end(Ending(text, ServerLost(text)))

    async def _run(self) -> None:
        player = self._player
        assert player is not None  # `begin` comes first
        while True:
            await self._lost.wait()
            self._lost.clear()
            self._report(Progress(Stage.DROPPED, f"{self._ending.reason}: reconnecting", self._session_id))
            await player.abandon()
            try:
                channel = await self._reconnect()
            except TipoffError as exc:
                text = one_line(f"{self._ending.reason}; not reconnected: {exc}")
                self._inbox.end(Ending(text, ServerLost(text)))
                return
            player.resumed(channel)
            if self._lost.is_set():
                player.lost()
            self._report(
                Progress(Stage.RESUMED, f"back in the game, by {channel.transport}", self._session_id)
            )

    async def _reconnect(self) -> Channel:
        """A new connection to the same seat. Raises the last error when there is none to be had."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        pauses = Backoff(FIRST_PAUSE, longest=LONGEST_PAUSE)
        closed_since: float | None = None
        while True:
            try:
                seat = await self._ask(deadline - loop.time())
                if seat.session_id != self._session_id:  # a matchmaker of an earlier release
                    raise Conflict("the matchmaker gave another seat")
                return await self._dial(seat, self.line(), deadline - loop.time())
            except _FINAL:
                raise
            except TipoffError as exc:
                now = loop.time()
                closed = isinstance(exc, ConnectionFailed) and exc.closed
                closed_since = (closed_since or now) if closed else None
                if closed_since is not None and now - closed_since >= CLOSED_FOR:
                    raise
                pauses.failed()
                pause = max(pauses.pause(), exc.retry_after or 0.0)
                if now + pause >= deadline:
                    raise
                log.info("not reconnected yet: %s", exc)
                await asyncio.sleep(pause)
