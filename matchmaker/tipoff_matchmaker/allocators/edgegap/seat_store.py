"""Stores which of Edgegap's sessions each of ours sits in, and deletes such a session with its last member."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.records import EdgegapSeat

_TRIES = 20
_MARKER_TTL = 60.0


class SeatStore:
    """`seats`: the bucket `edgegap_sessions`, by the ids of our sessions. Where two matchmakers write a seat, the first
    one wins. Methods raise `Unavailable` while NATS or Edgegap is away; every step may be repeated."""

    def __init__(self, client: EdgegapClient, seats: Bucket[EdgegapSeat]) -> None:
        self._client = client
        self._seats = seats

    async def known(self, members: Iterable[str]) -> dict[str, str]:
        """Member -> its session at Edgegap, for those that have one."""
        found: dict[str, str] = {}
        for member in members:
            entry = await self._seats.get(member)
            if entry is not None and not entry.value.left:
                found[member] = entry.value.edgegap_session
        return found

    async def note(self, member: str, seat: EdgegapSeat) -> None:
        """Write a member's seat. Raises `LostRace` when it has one already. When the seat cannot be written, its
        session is deleted, because nothing would refer to it."""
        try:
            await self._seats.create(member, seat)
        except Unavailable:
            with suppress(Unavailable):
                await self.delete_session(seat.edgegap_session)
            raise

    async def release(self, member: str) -> None:
        """Free this member's seat, and delete the session with its last member. Idempotent."""

        def left(seat: EdgegapSeat | None) -> EdgegapSeat | None:
            return None if seat is None or seat.left else msgspec.structs.replace(seat, left=True)

        result = await self._seats.change(member, left, tries=_TRIES, what=f"the seat of {member}")
        if result.entry is None:
            return
        seat = result.entry.value
        for other in seat.members:
            if other == member:
                continue
            entry = await self._seats.get(other)
            if (
                entry is not None
                and entry.value.edgegap_session == seat.edgegap_session
                and not entry.value.left
            ):
                return  # the session has another member
        await self.delete_session(seat.edgegap_session)
        for each in seat.members:
            entry = await self._seats.get(each)
            if entry is not None and entry.value.edgegap_session == seat.edgegap_session:
                await self._seats.purge(each, ttl=_MARKER_TTL)

    async def delete_session(self, session_id: str) -> None:
        """Delete a session at Edgegap. Raises `Unavailable` when that fails."""
        try:
            await self._client.delete_session(session_id)
        except OrchestratorError as exc:
            raise Unavailable(f"Edgegap's session {session_id} cannot be deleted yet: {exc}") from exc

    async def all(self) -> set[str]:
        """Our sessions that have a session at Edgegap."""
        try:
            there = {session.session_id for session in await self._client.sessions()}
        except OrchestratorError as exc:
            raise Unavailable(f"Edgegap does not list its sessions: {exc}") from exc
        seats = await self._seats.list()
        return {
            member
            for member, entry in seats.items()
            if entry.value.edgegap_session in there and not entry.value.left
        }
