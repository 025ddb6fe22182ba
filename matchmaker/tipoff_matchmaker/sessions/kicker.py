"""Ending what must not be: a connection, by a command to the gameserver that holds it; a request that still waits, by
a word to the matchmaker that sees it through."""

from __future__ import annotations

import logging

from tipoff_matchmaker.deployments.machine import serves
from tipoff_matchmaker.deployments.store import Ledger
from tipoff_shared.errors import TipoffError
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import Kick, SessionRecord, encode

log = logging.getLogger(__name__)


class Kicks:
    def __init__(self, bus: Bus, ledger: Ledger, tasks: Tasks) -> None:
        self._bus = bus
        self._ledger = ledger
        self._tasks = tasks

    def start(self, session_id: str, record: SessionRecord | None, reason: str = "") -> None:
        """`reason`: what the player is told."""
        self._tasks.start(
            self._kick(session_id, record, reason or "the session is over"), f"kick/{session_id}"
        )

    async def _kick(self, session_id: str, record: SessionRecord | None, reason: str) -> None:
        """To the session's server; a session nobody knows may be on any server, so all are told."""
        if record is not None and record.deployment_id:
            targets = [record.deployment_id]
        else:
            targets = [id for id, entry in self._ledger.entries.items() if serves(entry.value)]
        command = encode(Kick(session_id, reason))
        log.warning(
            "session %s is over; its connection is to end, %d server(s) are told", session_id, len(targets)
        )
        try:
            for deployment_id in targets:
                await self._bus.publish(self._bus.subjects.commands(deployment_id), command)
        except TipoffError as exc:
            log.info("kicking %s has to wait for the sweep: %s", session_id, exc)

    async def tell_waiting(self, session_id: str, reason: str) -> None:
        """Its record is closed; whichever matchmaker looks for its seat may stop, and say so. A hint: missed, the
        seat it finds is not taken, and the player hears of it then."""
        try:
            await self._bus.publish(self._bus.subjects.over, encode(Kick(session_id, reason)))
        except TipoffError as exc:
            log.info("nobody is told that %s is over: %s", session_id, exc)
