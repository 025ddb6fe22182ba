"""How long a request goes on when the store fails under it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tipoff_shared.errors import Unavailable
from tipoff_turn_relay.store import RecordStore

_PAUSE = 0.05
"""Seconds between two tries while NATS is connected and its JetStream is not ready yet."""

Abandoned = Callable[[], Awaitable[bool]]
"""Whether the client has gone away, so that nobody would get the answer."""


class ClientGone(Exception):
    """The client left before its request was carried out; nothing was changed for it."""


class Patience:
    """Of one request: its tries after failures of the store, up to `seconds` from the first."""

    def __init__(self, store: RecordStore, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._until: float | None = None
        self.tried = 0

    async def after(self, failure: Unavailable) -> None:
        """Return when it is worth another try; raise `failure` when time is up."""
        now = asyncio.get_running_loop().time()
        if self._until is None:
            self._until = now + self._seconds
        self.tried += 1
        left = self._until - now
        if left <= 0 or not await self._store.available(left):
            raise failure
        if self.tried > 1:
            await asyncio.sleep(
                _PAUSE
            )  # connected, and still failing: a stream that elects its leader tells nobody
