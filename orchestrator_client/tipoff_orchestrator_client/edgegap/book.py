"""What this namespace has ordered from Edgegap, written down: deployment id -> request id.

Edgegap's create is not idempotent and its list may be late. So an order is written before it is given, by
compare-and-set, and what came of it after; whichever matchmaker asks next goes on from there.

    (nothing) ──> ordering, `tries` ──> ordered, `request_id` ──> stopped
        └────────────── stopped, before it was ever ordered ────────^
"""

from __future__ import annotations

from typing import TypeAlias

from tipoff_orchestrator_client.base import OrchestratorUnavailable
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv import Entry, LostRace
from tipoff_shared.nats_connection import Bus
from tipoff_shared.records import EdgegapOrder, OrderState
from tipoff_shared.stores import stores

STOPPED_TTL = 6 * 3600.0
"""Seconds for which a stopped order is remembered: longer than anything that still might come of it."""

Known: TypeAlias = Entry[EdgegapOrder] | None


class Book:
    """Raises `OrchestratorUnavailable` while the store is away."""

    def __init__(self, bus: Bus) -> None:
        self._orders = stores(bus).edgegap_orders

    async def read(self, deployment_id: str) -> Known:
        try:
            return await self._orders.get(deployment_id)
        except TipoffError as exc:
            raise _away(exc) from exc

    async def write(self, order: EdgegapOrder, before: Known) -> Known:
        """Compare-and-set; None when somebody else was first."""
        ttl = STOPPED_TTL if order.state is OrderState.STOPPED else None
        try:
            if before is None:
                revision = await self._orders.create(order.deployment_id, order, ttl=ttl)
            else:
                revision = await self._orders.update(order.deployment_id, order, before.revision, ttl=ttl)
        except LostRace:
            return None
        except TipoffError as exc:
            raise _away(exc) from exc
        return Entry(order.deployment_id, order, revision)

    async def all(self) -> dict[str, EdgegapOrder]:
        """Deployment id -> order."""
        try:
            found = await self._orders.list()
        except TipoffError as exc:
            raise _away(exc) from exc
        return {key: entry.value for key, entry in found.items()}


def _away(exc: TipoffError) -> OrchestratorUnavailable:
    return OrchestratorUnavailable(
        f"what was ordered from Edgegap cannot be read or written: {exc}",
        retryable=True,
        may_have_started=True,
        retry_after=exc.retry_after,
    )
