"""What this namespace has ordered from Edgegap, written down: deployment id -> request id.

Edgegap's create is not idempotent and its list may be late. So an order is written before it is given, by
compare-and-set, and what came of it after; whichever matchmaker asks next goes on from there.

    (nothing) ──> ordering, `tries` ──> ordered, `request_id` ──> stopped
        └────────────── stopped, before it was ever ordered ────────^
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from tipoff_orchestrator_client.base import DeploySpec, OrchestratorUnavailable
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.bucket import Entry, LostRace
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import EdgegapOrder, OrderState

STOPPED_TTL = 6 * 3600.0
"""Seconds for which a stopped order is remembered: longer than anything that still might come of it."""

_TRIES = 8

Known: TypeAlias = Entry[EdgegapOrder] | None


class Book:
    """Raises `OrchestratorUnavailable` while the store is away."""

    def __init__(self, bus: Bus) -> None:
        self._orders = buckets(bus).edgegap_orders

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

    # The steps of an order.

    async def claim(self, spec: DeploySpec, before: Known, now: float) -> Known:
        """Write down that it is ordered at `now` (Unix time); None when somebody else has written meanwhile."""
        order = EdgegapOrder(
            spec.deployment_id,
            OrderState.ORDERING,
            spec.game,
            spec.version,
            tried_at=now,
            tries=1 if before is None else before.value.tries + 1,
        )
        return await self.write(order, before)

    async def note(self, claim: Entry[EdgegapOrder], request_id: str) -> EdgegapOrder:
        """What the order has led to. Returned is what then stands here: it may have been stopped meanwhile, or have led
        to something else before."""
        entry: Known = claim
        for _ in range(_TRIES):
            if entry is None:
                break
            order = entry.value
            if order.state is OrderState.STOPPED or order.request_id:
                return order
            noted = msgspec.structs.replace(order, state=OrderState.ORDERED, request_id=request_id)
            if await self.write(noted, entry) is not None:
                return noted
            entry = await self.read(order.deployment_id)
        raise OrchestratorUnavailable(
            "an order was changed by others again and again", retryable=True, may_have_started=True
        )

    async def adopt(self, deployment_id: str, request_id: str) -> None:
        """Somebody ordered it and did not live to write down what came of it: from now on it is known by its id."""
        entry = await self.read(deployment_id)
        if entry is not None and entry.value.state is OrderState.ORDERING and not entry.value.request_id:
            order = msgspec.structs.replace(entry.value, state=OrderState.ORDERED, request_id=request_id)
            await self.write(order, entry)

    async def note_ended(self, order: EdgegapOrder, reason: str) -> None:
        """Nobody need stop it any more, and what is written of it may be forgotten some day. A hint that may fail: the
        next look says it again."""
        ended = msgspec.structs.replace(order, state=OrderState.STOPPED, reason=reason)
        entry = await self.read(order.deployment_id)
        if entry is not None and entry.value == order:
            await self.write(ended, entry)

    async def stop(self, deployment_id: str) -> EdgegapOrder:
        """It shall not be, ordered or not; from now on nothing of its name is ordered."""
        for _ in range(_TRIES):
            entry = await self.read(deployment_id)
            order = EdgegapOrder(deployment_id, OrderState.STOPPED) if entry is None else entry.value
            if entry is not None and order.state is OrderState.STOPPED:
                return order
            order = msgspec.structs.replace(order, state=OrderState.STOPPED, reason="stopped")
            if await self.write(order, entry) is not None:
                return order
        raise OrchestratorUnavailable(f"the order of {deployment_id} changes too quickly", retryable=True)


def _away(exc: TipoffError) -> OrchestratorUnavailable:
    return OrchestratorUnavailable(
        f"what was ordered from Edgegap cannot be read or written: {exc}",
        retryable=True,
        may_have_started=True,
        retry_after=exc.retry_after,
    )
