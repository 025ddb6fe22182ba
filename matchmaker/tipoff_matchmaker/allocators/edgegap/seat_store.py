"""Which session of Edgegap's each of ours has a part in: written down, and given back with the last part.

Whoever writes a part down first is right; every step may be repeated.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import msgspec

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, LostRace
from tipoff_shared.records import EdgegapSeat

_WRITES = 20
_MARKER_TTL = 60.0


class Parts:
    """`edgegap_sessions[*]`, and the sessions at Edgegap that they are parts of."""

    def __init__(self, servers: SessionServers, store: Bucket[EdgegapSeat]) -> None:
        self._client = servers.client
        self._store = store

    async def known(self, members: Iterable[str]) -> dict[str, str]:
        """Member -> its session, for those who have one."""
        found: dict[str, str] = {}
        for member in members:
            entry = await self._store.get(member)
            if entry is not None and not entry.value.left:
                found[member] = entry.value.edgegap_session
        return found

    async def note(self, member: str, seat: EdgegapSeat) -> None:
        """Raises `LostRace` where the member has one already. Where it cannot be written, the session is closed while
        we still know of it."""
        try:
            await self._store.create(member, seat)
        except Unavailable:
            with suppress(Unavailable):
                await self.close(seat.edgegap_session)
            raise

    async def release(self, member: str) -> None:
        """This member's part goes back; with the last one, the session. Every step may be repeated."""
        for _ in range(_WRITES):
            entry = await self._store.get(member)
            if entry is None:
                return
            seat = entry.value
            if seat.left:
                break
            try:
                left = msgspec.structs.replace(seat, left=True)
                await self._store.update(member, left, entry.revision)
                break
            except LostRace:
                continue
        else:
            raise Unavailable(f"the part of {member} changes too quickly to be given back", retry_after=1)
        for other in seat.members:
            if other == member:
                continue
            entry = await self._store.get(other)
            if (
                entry is not None
                and entry.value.edgegap_session == seat.edgegap_session
                and not entry.value.left
            ):
                return  # somebody still plays there
        await self.close(seat.edgegap_session)
        for each in seat.members:
            entry = await self._store.get(each)
            if entry is not None and entry.value.edgegap_session == seat.edgegap_session:
                await self._store.purge(each, ttl=_MARKER_TTL)

    async def close(self, session_id: str) -> None:
        """Raises `Unavailable` when it cannot be closed yet."""
        try:
            await self._client.delete_session(session_id)
        except OrchestratorError as exc:
            raise Unavailable(f"Edgegap's session {session_id} cannot be closed yet: {exc}") from exc

    async def all(self) -> set[str]:
        """Those of ours that Edgegap has a session for."""
        try:
            there = {session.session_id for session in await self._client.sessions()}
        except OrchestratorError as exc:
            raise Unavailable(f"Edgegap does not list its sessions: {exc}") from exc
        seats = await self._store.list()
        return {
            member
            for member, entry in seats.items()
            if entry.value.edgegap_session in there and not entry.value.left
        }
