"""Holds messages that arrived and wait for the game: bounded, with an end that is reported after everything before it.

One transport fills it on the event loop; the game empties it on the loop (`get`) or from the thread of a frame loop
(`take_all`). The two threads share only a deque, whose `append` and `popleft` are atomic in CPython.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass

from tipoff_client_sdk.errors import ServerLost


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended: `error` when the server vanished, None when it ended in an orderly way."""

    reason: str
    error: ServerLost | None = None


class Inbox:
    """A queue of at most `limit` messages, with an end.

    `put` on a full inbox drops the oldest and counts it in `dropped`: right for datagrams, of which the newest matters.
    A transport that must not lose anything awaits `room` first, and so makes the server wait.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"an inbox of {limit} messages: at least one is needed")
        self._limit = limit
        self._messages: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self.dropped = 0
        self.received = 0
        self.ending: Ending | None = None

    def put(self, message: bytes) -> None:
        """Add a message; from the loop. Ignored after the end."""
        if self.ending is not None:
            return
        if len(self._messages) >= self._limit:
            with contextlib.suppress(IndexError):  # the other thread has just emptied it
                self._messages.popleft()
                self.dropped += 1
        self._messages.append(message)
        self.received += 1
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
            if len(self._messages) >= self._limit:  # emptied meanwhile by the other thread
                await self._room.wait()

    async def get(self) -> bytes | None:
        """The next message; None after the last when the end was orderly; raises its `ServerLost` otherwise.

        Safe to cancel: no message is lost.
        """
        while not self._messages:
            if self.ending is not None:
                if self.ending.error is not None:
                    raise self.ending.error
                return None
            self._changed.clear()
            await self._changed.wait()
        message = self._messages.popleft()
        self._room.set()
        return message

    async def ended(self) -> Ending:
        """Wait for the end, whether or not everything was read."""
        while self.ending is None:
            await self._over.wait()
        return self.ending

    def take_all(self) -> list[bytes]:
        """Take everything that waits now; from any thread, never blocks."""
        taken: list[bytes] = []
        for _ in range(self._limit):
            try:
                taken.append(self._messages.popleft())
            except IndexError:
                break
        if taken and not self._room.is_set() and not self._loop.is_closed():
            # The loop may close in between: then no transport waits for room.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._room.set)
        return taken
