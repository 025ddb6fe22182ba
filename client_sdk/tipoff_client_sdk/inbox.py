"""Holds messages that arrived and wait for the game: bounded, with an end that is reported after everything before it.

One transport fills it on the event loop; the game empties it on the loop (`get`) or from the thread of a frame loop
(`take_all`). The two threads share only a deque, whose `append` and `popleft` are atomic in CPython.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tipoff_client_sdk.errors import ServerLost
from tipoff_shared.framing.close_code import ORDERLY


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended: `error` when the server vanished, None when it ended in an orderly way. `code` is the
    server's close code (docs/wire.md), None where it sent none."""

    reason: str
    error: ServerLost | None = None
    code: int | None = None

    @staticmethod
    def closed(code: int, reason: str) -> Ending:
        """The server ended the connection with a close."""
        if code in ORDERLY:
            return Ending(reason or "the server closed the connection", code=code)
        text = f"the server failed: {code} {reason}".strip()
        return Ending(text, ServerLost(text, close_code=code, reason=reason), code)


class Inbox:
    """A queue of messages, with an end.

    `put` adds a message that may get lost: with `limit` of them waiting it drops the oldest and counts it in `dropped`,
    which is right for datagrams, of which the newest matters. `keep` adds one that must not, while `has_room`. A
    transport that must not lose anything awaits `room` first, and so makes the server wait.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"an inbox of {limit} messages: at least one is needed")
        self._limit = limit
        # Each with its number in the order of arrival: `get` takes the older of the two heads.
        self._messages: deque[tuple[int, bytes]] = deque()
        self._kept: deque[tuple[int, bytes]] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._on_room: Callable[[], None] | None = None
        self._full = False
        """Whether a transport waits for room."""
        self.dropped = 0
        self.received = 0
        self.ending: Ending | None = None

    @property
    def has_room(self) -> bool:
        """Whether one more message that must not get lost finds room."""
        return len(self._kept) < self._limit

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the loop when the game has taken messages of a full inbox."""
        self._on_room = callback

    def put(self, message: bytes) -> None:
        """Add a message; from the loop. Ignored after the end."""
        if self.ending is not None:
            return
        if len(self._messages) >= self._limit:
            with contextlib.suppress(IndexError):  # the other thread has just emptied it
                self._messages.popleft()
                self.dropped += 1
        self.received += 1
        self._messages.append((self.received, message))
        self._changed.set()

    def keep(self, message: bytes) -> None:
        """Add a message that must not get lost; the caller has seen `has_room`. Ignored after the end."""
        if self.ending is None:
            self.received += 1
            self._kept.append((self.received, message))
            self._full = self._full or not self.has_room
            self._changed.set()

    def end(self, ending: Ending) -> None:
        """Report the end; from the loop. Only the first call counts."""
        if self.ending is None:
            self.ending = ending
            self._changed.set()
            self._room.set()
            self._over.set()

    async def room(self) -> None:
        """Wait until a message finds room, or the end. Safe to cancel."""
        while len(self._messages) >= self._limit and self.ending is None:
            self._room.clear()
            self._full = True
            if len(self._messages) >= self._limit:  # emptied meanwhile by the other thread
                await self._room.wait()

    async def get(self) -> bytes | None:
        """The next message; None after the last when the end was orderly; raises its `ServerLost` otherwise.

        Safe to cancel: no message is lost.
        """
        while (message := self._take()) is None:
            if self.ending is not None:
                if self.ending.error is not None:
                    raise self.ending.error
                return None
            self._changed.clear()
            await self._changed.wait()
        if self._full:
            self._made_room()
        return message

    async def ended(self) -> Ending:
        """Wait for the end, whether or not everything was read."""
        while self.ending is None:
            await self._over.wait()
        return self.ending

    def take_all(self) -> list[bytes]:
        """Take everything that waits now; from any thread, never blocks."""
        taken: list[bytes] = []
        for _ in range(2 * self._limit):
            if (message := self._take()) is None:
                break
            taken.append(message)
        if taken and self._full and not self._loop.is_closed():
            # The loop may close in between: then no transport waits for room.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._made_room)
        return taken

    def _take(self) -> bytes | None:
        """The oldest message, None if none waits; from any thread."""
        while True:
            try:
                queue = self._messages
                if self._kept and not (queue and queue[0][0] < self._kept[0][0]):
                    queue = self._kept
                return queue.popleft()[1]
            except IndexError:  # none waits, or the other thread has just taken or dropped it
                if not self._kept and not self._messages:
                    return None

    def _made_room(self) -> None:
        self._full = False
        self._room.set()
        if self._on_room is not None:
            self._on_room()


class Line:
    """One connection's way into an `Inbox`, with the same methods for its transport. What comes after its own end is
    ignored. A lost connection is passed to `on_lost` in place of ending the inbox: another one may take its place."""

    def __init__(self, inbox: Inbox, on_lost: Callable[[Ending], None]) -> None:
        self._inbox = inbox
        self._on_lost = on_lost
        self._ending: Ending | None = None

    @property
    def ending(self) -> Ending | None:
        """How this connection ended; None while it has not."""
        return self._ending or self._inbox.ending

    @property
    def has_room(self) -> bool:
        """As `Inbox.has_room`."""
        return self._inbox.has_room

    def on_room(self, callback: Callable[[], None]) -> None:
        """As `Inbox.on_room`; the connection that came last is called."""
        self._inbox.on_room(callback)

    def put(self, message: bytes) -> None:
        """As `Inbox.put`."""
        if self._ending is None:
            self._inbox.put(message)

    def keep(self, message: bytes) -> None:
        """As `Inbox.keep`."""
        if self._ending is None:
            self._inbox.keep(message)

    def end(self, ending: Ending) -> None:
        """This connection has ended. Only the first call counts."""
        if self.ending is not None:
            return
        self._ending = ending
        if ending.error is None:
            self._inbox.end(ending)
        else:
            self._on_lost(ending)

    async def room(self) -> None:
        """As `Inbox.room`."""
        if self._ending is None:
            await self._inbox.room()
