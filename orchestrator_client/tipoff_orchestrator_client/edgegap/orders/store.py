"""Stores what this namespace has ordered from Edgegap: deployment id -> request id, in the bucket `edgegap_orders`.

Edgegap's create is not idempotent and its list may be late. So an order is written before it is placed, and its outcome
afterwards, by compare-and-set; any matchmaker goes on from there.

    (nothing) ──> ordering, `tries` ──> ordered, `request_id` ──> stopped
        └────────────── stopped, before it was ever ordered ────────^
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import msgspec

from tipoff_orchestrator_client.base import DeploySpec, OrchestratorUnavailable
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.bucket import Entry, LostRace
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import EdgegapOrder, OrderState

STOPPED_TTL = 6 * 3600.0
"""Seconds for which a stopped order is kept: longer than Edgegap may take to create what was ordered."""
_TRIES = 8

Known: TypeAlias = Entry[EdgegapOrder] | None


class OrderStore:
    """The orders of this namespace. Every method raises `OrchestratorUnavailable` while NATS is away."""

    def __init__(self, bus: Bus) -> None:
        self._orders = buckets(bus).edgegap_orders

    async def get(self, deployment_id: str) -> Known:
        """The order of this deployment; None: there is none."""
        with _translated():
            return await self._orders.get(deployment_id)

    async def all(self) -> dict[str, EdgegapOrder]:
        """Deployment id -> order."""
        with _translated():
            return {key: entry.value for key, entry in (await self._orders.list()).items()}

    async def claim(self, spec: DeploySpec, before: Known, now: float) -> Known:
        """Write that `spec` is ordered at `now` (Unix seconds). `before` is the order as it was read. None: another
        matchmaker has written it meanwhile."""
        order = EdgegapOrder(
            spec.deployment_id,
            OrderState.ORDERING,
            spec.game,
            spec.version,
            tried_at=now,
            tries=1 if before is None else before.value.tries + 1,
        )
        with _translated():
            try:
                if before is None:
                    revision = await self._orders.create(order.deployment_id, order)
                else:
                    revision = await self._orders.update(order.deployment_id, order, before.revision)
            except LostRace:
                return None
        return Entry(order.deployment_id, order, revision)

    async def note(self, claim: Entry[EdgegapOrder], request_id: str) -> EdgegapOrder:
        """Write the outcome of an order. Returns the order as it then is: it may have been stopped meanwhile, or have
        another outcome already."""

        def ordered(order: EdgegapOrder | None) -> EdgegapOrder | None:
            if order is None or order.state is OrderState.STOPPED or order.request_id:
                return None
            return msgspec.structs.replace(order, state=OrderState.ORDERED, request_id=request_id)

        with _translated():
            result = await self._orders.change(
                claim.key, ordered, known=claim, tries=_TRIES, what=f"the order of {claim.key}"
            )
        if result.entry is None:
            raise OrchestratorUnavailable(
                f"the order of {claim.key} was deleted", retryable=True, may_have_started=True
            )
        return result.entry.value

    async def adopt(self, deployment_id: str, request_id: str) -> None:
        """Write the outcome of an order whose matchmaker could not: it died, or got no answer."""

        def adopted(order: EdgegapOrder | None) -> EdgegapOrder | None:
            if order is None or order.state is not OrderState.ORDERING or order.request_id:
                return None
            return msgspec.structs.replace(order, state=OrderState.ORDERED, request_id=request_id)

        with _translated():
            await self._orders.change(deployment_id, adopted, tries=_TRIES)

    async def note_ended(self, order: EdgegapOrder, reason: str) -> None:
        """Write that the deployment has ended by itself: it need not be stopped, and the order expires."""

        def ended(current: EdgegapOrder | None) -> EdgegapOrder | None:
            if current != order:
                return None
            return msgspec.structs.replace(order, state=OrderState.STOPPED, reason=reason)

        with _translated():
            await self._orders.change(order.deployment_id, ended, ttl=STOPPED_TTL, tries=_TRIES)

    async def stop(self, deployment_id: str) -> EdgegapOrder:
        """Write that the deployment is to stop, whether it was ordered or not: from now on nothing is ordered under its
        id. Returns the order."""

        def stopped(order: EdgegapOrder | None) -> EdgegapOrder | None:
            order = order or EdgegapOrder(deployment_id, OrderState.ORDERING)
            if order.state is OrderState.STOPPED:
                return None
            return msgspec.structs.replace(order, state=OrderState.STOPPED, reason="stopped")

        with _translated():
            result = await self._orders.change(
                deployment_id,
                stopped,
                ttl=STOPPED_TTL,
                tries=_TRIES,
                what=f"the order of {deployment_id}",
            )
        assert result.entry is not None  # `stopped` removes nothing
        return result.entry.value


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TipoffError as exc:
        raise OrchestratorUnavailable(
            f"the orders at Edgegap cannot be read or written: {exc}",
            retryable=True,
            may_have_started=True,
            retry_after=exc.retry_after,
        ) from exc
