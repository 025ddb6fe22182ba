"""Writes what game servers of the isolated profile say into the buckets on their behalf, as far as they may say it.

rules.py judges by the current records; every write is a compare-and-set. From the buckets everything goes on as in the
trusted profile (presence_reader.py, fleet/liveness.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.isolated import rules
from tipoff_matchmaker.isolated.rules import Join, Leave
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Removal
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.waiting import gather_then_raise
from tipoff_shared.records import DeploymentRecord, GameserverLease, Kick, encode
from tipoff_shared.server_events import MAX_LEASE_TTL, Context, Goodbye, Lease, Players, ServerEvent
from tipoff_shared.session_end import parse_end

_SIDE_BY_SIDE = 25


class EventWriter:
    """`on_context` handles context messages. `longest_lease`: seconds; no lease lives longer, whatever its server
    says."""

    def __init__(
        self,
        bus: Bus,
        ages: BucketAges,
        buckets: Buckets,
        deployments: DeploymentStore,
        on_context: Callable[[bytes], Awaitable[None]],
        *,
        longest_lease: float = MAX_LEASE_TTL,
    ) -> None:
        self._bus = bus
        self._ages = ages
        self._buckets = buckets
        self._deployments = deployments
        self._on_context = on_context
        self._longest_lease = longest_lease

    async def write_down(self, deployment_id: str, event: ServerEvent) -> None:
        """Write one event of this deployment; may be repeated. Raises a `TipoffError` when it must be repeated."""
        record = self._deployments.get(deployment_id) or await self._deployments.fetch(deployment_id)
        if record is None and await self._ages.may_have_lost("deployments"):
            # The seal says that it is this server's. Its lease is what its record is rebuilt from.
            if not isinstance(event.what, Lease):
                raise Unavailable(f"the record of {deployment_id} is lost")
        elif record is None or not state_machine.is_live(record):
            return  # it is over, and what it held has been released
        match event.what:
            case Lease(lease, ttl):
                await self._lease(
                    deployment_id, event, rules.ordered(lease, event), min(ttl, self._longest_lease)
                )
            case Goodbye():
                await self._goodbye(deployment_id, event)
            case Players(joined, left, ends):
                assert record is not None
                joins = (self._join(record, event.boot_id, *player) for player in joined.items())
                await gather_then_raise(*joins, at_once=_SIDE_BY_SIDE)
                leaves = (
                    self._leave(deployment_id, session_id, ends.get(session_id, "")) for session_id in left
                )
                await gather_then_raise(*leaves, at_once=_SIDE_BY_SIDE)
            case Context(context):
                named: dict[str, Any] = context | {
                    "deployment_id": deployment_id,
                    "request_id": deployment_id,
                }
                await self._on_context(msgspec.json.encode(named))

    async def _lease(
        self, deployment_id: str, event: ServerEvent, lease: GameserverLease, ttl: float
    ) -> None:
        await self._buckets.gameservers.change(
            deployment_id, lambda current: lease if rules.newer(current, event) else None, ttl=ttl
        )

    async def _goodbye(self, deployment_id: str, event: ServerEvent) -> None:
        await self._buckets.gameservers.change(
            deployment_id, lambda current: Removal.DELETE if rules.withdraws(current, event) else None
        )

    async def _join(self, server: DeploymentRecord, boot_id: str, session_id: str, client_id: str) -> None:
        deployment_id = server.id
        session = await self._buckets.sessions.get(session_id)
        record = None if session is None else session.value
        if rules.join(record, deployment_id, boot_id, client_id) is Join.WRITE:
            result = await self._buckets.active_connections.change(
                session_id,
                lambda current: None if current == client_id else client_id,
                recreate=False,  # where there is a tombstone, the player has left
            )
            if result.entry is not None:
                return
        if record is None and await self._ages.may_have_lost("sessions"):
            # Its record is lost with others. The server's word is no reason to end a game; and where it has a seat for
            # the session, the connection is what the record is rebuilt from. A lie takes nothing but its own seats.
            if self._has_seat(server, session_id):
                connections = self._buckets.active_connections
                if await connections.latest(session_id) is None:  # else it has one, or the player has left
                    await connections.put(session_id, client_id, server=deployment_id)
            return
        await self._kick(deployment_id, session_id)

    def _has_seat(self, server: DeploymentRecord, session_id: str) -> bool:
        if session_id in server.seats:
            return True
        return "deployments" in self._ages.lost and len(server.seats) < server.capacity

    async def _leave(self, deployment_id: str, session_id: str, end: str) -> None:
        session = await self._buckets.sessions.get(session_id)
        verdict = rules.leave(None if session is None else session.value, deployment_id)
        if verdict is Leave.IGNORE:
            return
        connections = self._buckets.active_connections
        why = parse_end(end).encode() if end else ""
        result = await connections.change(
            session_id, lambda current: None if current is None else Removal.DELETE, why=why
        )
        if not result.written and verdict is Leave.TELL:
            # The presence reader sees it, also where there was no connection.
            await connections.delete(session_id, why=why)

    async def _kick(self, deployment_id: str, session_id: str) -> None:
        command = encode(Kick(session_id, "the session is over"))
        await self._bus.publish(self._bus.subjects.commands(deployment_id), command)
