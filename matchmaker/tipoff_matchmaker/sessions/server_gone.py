"""Ends all sessions of a server that is gone or stops, and writes on the server's behalf what it can write no more."""

from __future__ import annotations

from tipoff_matchmaker.sessions.state_machine import ServerGone
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.primitives.waiting import gather_then_raise
from tipoff_shared.records import DeploymentRecord

_AT_ONCE = 100
EVERYTHING = 2**62
"""A revision above all others, for `Bucket.forget`."""


class SessionEnder:
    """Called for a server that stops, and for one that was restarted."""

    def __init__(self, buckets: Buckets, sessions: SessionStore) -> None:
        self._buckets = buckets
        self._sessions = sessions

    async def end_sessions(self, record: DeploymentRecord, reason: str, *, living_boot: str = "") -> None:
        """End every session that has a seat on `record`; with `living_boot` only those of an earlier boot. Tries all,
        then raises the first error; may be repeated."""
        event = ServerGone(record.id, reason, living_boot)

        async def end(session_id: str) -> None:
            outcome = await self._sessions.apply(session_id, event)
            if outcome.changed or outcome.record is None:
                await self.forget_connection(session_id)

        await gather_then_raise(*map(end, record.seats), at_once=_AT_ONCE)
        if not living_boot:
            await self._buckets.gameservers.forget(record.id, EVERYTHING)
            if record.digest_key:
                await self._buckets.cert_digests.forget(record.digest_key, EVERYTHING)

    async def forget_connection(self, session_id: str) -> None:
        """Remove the connection that a dead server left behind."""
        await self._buckets.active_connections.forget(session_id, EVERYTHING)
