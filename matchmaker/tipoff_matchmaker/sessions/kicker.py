"""Ends connections and waiting requests of sessions that are over.

A connection ends by a command to the game server that holds it; a request that still waits ends by a message to the
matchmaker that handles it. A connection whose session has no record is left alone where NATS may have lost the record:
the reconciler rebuilds it.
"""

from __future__ import annotations

import logging

from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments.state_machine import serves
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.sessions.state_machine import Ended
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.throttled_log import ThrottledLog
from tipoff_shared.records import Kick, SessionRecord, SessionState, encode

log = logging.getLogger(__name__)


class Kicker:
    """Commands are hints: one that is lost is repeated when the reconciler finds the connection again."""

    def __init__(
        self, bus: Bus, ages: BucketAges, buckets: Buckets, deployments: DeploymentStore, tasks: Tasks
    ) -> None:
        self._bus = bus
        self._ages = ages
        self._buckets = buckets
        self._deployments = deployments
        self._tasks = tasks
        self._log = ThrottledLog(log)

    def start(
        self,
        session_id: str,
        record: SessionRecord | None,
        reason: str = "the session is over",
        *,
        server: str = "",
    ) -> None:
        """End the session's connection. `record`: its current one, None where it has none. `reason` is shown to the
        player. `server`: where it is, if that is known."""
        self._tasks.start(self._kick(session_id, record, reason, server), f"kick/{session_id}")

    async def _kick(self, session_id: str, record: SessionRecord | None, reason: str, server: str) -> None:
        """A session without a record may be on any server, so all servers get the command, unless one is named."""
        try:
            if record is None and await self._may_be_lost(session_id):
                log.info("the record of session %s may be lost: its player plays on", session_id)
                return
        except TipoffError as exc:
            log.info("whether %s is to be kicked is left to the reconciler: %s", session_id, exc)
            return
        if server:
            targets = [server]
        elif record is not None and record.deployment_id:
            targets = [record.deployment_id]
        else:
            targets = [id for id, entry in self._deployments.entries.items() if serves(entry.value)]
        command = encode(Kick(session_id, reason))
        # After a kill of nats-server, thousands of old connections may be there again at once.
        self._log.warning(
            "kick",
            "session %s is over; %d server(s) are told to end its connection",
            session_id,
            len(targets),
        )
        try:
            for deployment_id in targets:
                await self._bus.publish(self._bus.subjects.commands(deployment_id), command)
        except TipoffError as exc:
            log.info("kicking %s is left to the reconciler: %s", session_id, exc)

    async def _may_be_lost(self, session_id: str) -> bool:
        connection = await self._buckets.active_connections.latest(session_id)
        server = "" if connection is None else connection.server
        return await self._ages.may_have_lost("sessions", server=server)

    async def end(self, sessions: SessionStore, before: SessionRecord, reason: str) -> SessionRecord:
        """End a session because somebody decided so; its connection or its waiting request ends with it. `before`: its
        record; returns the one after. Idempotent. Raises `Unavailable`."""
        outcome = await sessions.apply(before.id, Ended(reason))
        after = outcome.record or before
        if after.deployment_id and after.state is not SessionState.GONE:
            self.start(before.id, after, reason)
        elif before.state is SessionState.REQUESTED:
            await self.end_waiting(before.id, reason)
        return after

    async def end_waiting(self, session_id: str, reason: str) -> None:
        """The session's record is closed: the matchmaker that looks for its seat may stop, and tell the player. A hint:
        if it is lost, the seat found later is not taken, and the player is told then."""
        try:
            await self._bus.publish(self._bus.subjects.over, encode(Kick(session_id, reason)))
        except TipoffError as exc:
            log.info("that session %s is over could not be published: %s", session_id, exc)
