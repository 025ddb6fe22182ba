"""A play request in hand: what was asked, until when, and who listens to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from tipoff_shared.errors import Conflict, NoServerInTime, TipoffError, Unavailable
from tipoff_shared.games import Game

Tell: TypeAlias = Callable[[str], Awaitable[None]]
"""Takes one progress text for people; returns soon."""


class Stopping(Unavailable):
    """This matchmaker stops; the same request may be asked again at once."""


class Elsewhere(TipoffError):
    """Another matchmaker, which lives, answers this request: nothing is to be said from here."""

    code = 409


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as it came. `timeout`: seconds until it must be answered. `repeated`: it has been asked before,
    as far as the asker knows, so the record is looked for first. `broadcast`: every matchmaker has been asked, so
    the one who owns the record answers, and the others see to it that somebody does."""

    request_id: str = field(repr=False)  # a secret: whoever has it can take the session over
    session_id: str
    game: Game
    client_ip: str
    timeout: float
    repeated: bool = False
    broadcast: bool = False


class Running:
    """A request in hand here: its duplicates listen to it and share its outcome."""

    def __init__(self, ask: Ask, tell: Tell) -> None:
        self.ask = ask
        self.deadline = asyncio.get_running_loop().time() + ask.timeout
        self.waits = False
        """Whether its record is written as `requested` and it is ours to end it."""
        self._tells = [tell]
        self._followers: list[asyncio.Future[None]] = []
        self._error: TipoffError | None = None
        self._last = ""
        self._timeout: asyncio.Timeout | None = None
        self._over = ""

    def within(self) -> asyncio.Timeout:
        """The time there is, as `async with`. Not more than once at a time."""
        self._timeout = asyncio.timeout_at(self.deadline)
        return self._timeout

    def end(self, reason: str) -> None:
        """Somebody has ended the session: its time is over at once, and `too_late` says why."""
        self._over = reason
        self.deadline = asyncio.get_running_loop().time()
        if self._timeout is not None and not self._timeout.expired():
            self._timeout.reschedule(self.deadline)

    async def tell(self, text: str) -> None:
        self._last = text
        for tell in list(self._tells):
            await tell(text)

    def check_deadline(self) -> None:
        """Raises `TimeoutError` when it is over. `asyncio.timeout` alone does not always see to it: before Python
        3.12 `asyncio.wait_for`, by which nats-py waits, may lose the cancellation."""
        if asyncio.get_running_loop().time() >= self.deadline:
            raise TimeoutError

    def too_late(self) -> TipoffError:
        """What the player is told when the time is over."""
        if self._over:
            return Conflict(f"{self._over}; ask with a new request id")
        last = f" (last heard: {self._last})" if self._last else ""
        return NoServerInTime(f"no server became ready within {self.ask.timeout:g} s{last}")

    async def done(self, tell: Tell) -> None:
        """Until it has been answered; raises what it was answered with, if that was an error."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tells.append(tell)
        self._followers.append(future)
        try:
            await future
        finally:
            self._tells.remove(tell)
            self._followers.remove(future)
        if self._error is not None:
            raise self._error

    def finish(self, error: TipoffError | None) -> None:
        self._error = error
        for future in self._followers:
            if not future.done():
                future.set_result(None)
