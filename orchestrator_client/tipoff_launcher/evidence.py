"""What NATS can tell of the servers that an earlier launcher has left (recovery.py): leases, and who writes them."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus

log = logging.getLogger(__name__)


def lease_of(bus: Bus) -> Callable[[str], Awaitable[bool | None]]:
    """Whether a deployment has a lease; None where that is not known."""
    gameservers = buckets(bus).gameservers

    async def has_lease(deployment_id: str) -> bool | None:
        try:
            return await gameservers.get(deployment_id) is not None
        except TipoffError as exc:
            log.warning("whether %s has a lease is not known: %s", deployment_id, exc)
            return None

    return has_lease


class Matchmakers:
    """Since when one of them answers, as far as one knows who asks now and then."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._since: float | None = None

    async def since(self) -> float | None:
        """In monotonic seconds; None while none answers."""
        try:
            await self._bus.request(self._bus.subjects.ping_matchmaker, b"", timeout=1)
        except Unavailable:
            self._since = None
        else:
            self._since = self._since or time.monotonic()
        return self._since
