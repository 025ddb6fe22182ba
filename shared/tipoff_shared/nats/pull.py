"""Reads a pull consumer, and returns messages as soon as they arrive.

nats-py's `fetch` (2.16) does not: asked for a batch, it asks with `no_wait` and `expires` together, which nats-server
(2.12) takes as one that waits. So of two messages 0.3 s apart the second was returned 4.2 s late, at the end of a
`timeout` of 5 s.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nats.aio.msg import Msg

from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus

_IS_OVER = ("404", "408")
"""A request ended: nothing there, or its time is over."""
_COMPLETED = "Batch Completed"
_LATE = 0.25
"""Seconds that a request's end may be late; then it counts as lost, and another is sent."""
_NANO = 1_000_000_000


@asynccontextmanager
async def pull_reader(bus: Bus, stream: str, consumer: str) -> AsyncIterator[PullReader]:
    """Read an existing consumer within the block. Raises `Unavailable` while NATS is away."""
    inbox = bus.nc.new_inbox()
    reader = PullReader(bus, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", inbox)
    subscription = await bus.subscribe(inbox, reader.receive)
    try:
        with bus.watched_for_disconnects(reader.disconnected):
            yield reader
    finally:
        await subscription.unsubscribe()


class PullReader:
    """Made by `pull_reader`. One task calls `fetch`. At most one request is open at the server, so at most one batch
    waits here."""

    def __init__(self, bus: Bus, subject: str, inbox: str) -> None:
        self._bus = bus
        self._subject = subject
        self._inbox = inbox
        self._loop = asyncio.get_running_loop()
        self._arrived: deque[Msg] = deque()
        self._stirred = asyncio.Event()
        self._owed = 0
        """Messages that the open request may still bring."""
        self._over_at = 0.0
        self._failure = ""

    async def receive(self, msg: Msg) -> None:
        """The callback of the inbox."""
        self._arrived.append(msg)
        self._stirred.set()

    def disconnected(self) -> None:
        """NATS is away: the open request is lost with the connection."""
        self._failure = "the connection to NATS was lost"
        self._stirred.set()

    async def fetch(self, batch: int, timeout: float) -> list[Msg]:
        """Up to `batch` messages, as soon as there is one; an empty list after `timeout` seconds without any.

        Raises `Unavailable` when the connection was lost or the consumer cannot be read; the next call tries again.
        Cancelling is safe: what arrives meanwhile is returned by the next call.
        """
        deadline = self._loop.time() + timeout
        while True:
            self._stirred.clear()
            if messages := self._take(batch):
                return messages
            if self._failure:
                failure, self._failure, self._owed = self._failure, "", 0
                raise Unavailable(failure)
            now = self._loop.time()
            if now >= deadline:
                return []
            if self._owed <= 0 or now >= self._over_at:
                await self._ask(batch, deadline - now)
            try:
                async with asyncio.timeout_at(min(deadline, self._over_at)):
                    await self._stirred.wait()
            except TimeoutError:
                pass

    async def _ask(self, batch: int, seconds: float) -> None:
        request = {"batch": batch, "expires": max(1, round(seconds * _NANO))}
        self._owed, self._over_at = batch, self._loop.time() + seconds + _LATE
        try:
            await self._bus.publish(self._subject, json.dumps(request).encode(), reply=self._inbox)
        except BaseException:
            self._owed = 0
            raise

    def _take(self, batch: int) -> list[Msg]:
        messages: list[Msg] = []
        while self._arrived and len(messages) < batch:
            msg = self._arrived.popleft()
            status = (msg.headers or {}).get("Status", "")
            if not status or msg.data:
                self._owed -= 1
                messages.append(msg)
            elif status != "100":  # a heartbeat
                self._ended(status, (msg.headers or {}).get("Description", ""))
        return messages

    def _ended(self, status: str, description: str) -> None:
        """The server says that a request is over."""
        self._owed = 0
        if status == "503":
            self._failure = "nobody serves this consumer"
        elif status not in _IS_OVER and description != _COMPLETED:
            self._failure = description or f"status {status}"
