"""Takes over from an earlier launcher: goes through the records and decides about each server it finds.

A server found running is adopted when it has a lease, else stopped. A missing lease alone proves nothing: after an
outage of NATS every lease has expired, and a server that is just starting has none yet. So nothing is stopped before
NATS has been reachable for the whole grace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from enum import StrEnum

import msgspec

from tipoff_launcher.backends.interface import Backend, RunningServer
from tipoff_launcher.records import PRIVATE_KEY, Record, Records
from tipoff_launcher.state_identity import StateIdentity
from tipoff_launcher.supervisor import Supervisor
from tipoff_orchestrator_client.base import OrchestratorUnavailable, RunState
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.games import Game, Games
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.subjects import DEAF_HEADER, SERVICE_ERROR_CODE

log = logging.getLogger(__name__)


class Decision(StrEnum):
    """What to do about a server found running. `WAIT`: decide again a little later."""

    ADOPT = "adopt"
    WAIT = "wait"
    STOP = "stop"


def decide(
    record: Record,
    game: Game | None,
    *,
    has_lease: bool | None,
    connected_for: float | None,
    found_for: float,
    grace: float,
    now: float,
) -> Decision:
    """What to do about a server found running. Pure.

    `has_lease` is None where NATS does not answer. `connected_for` and `found_for` are the seconds since NATS became
    reachable (None: it is not) and since the launcher found the server; `grace` is in seconds, `now` in Unix seconds.
    `game` is None when games.toml no longer has it.
    """
    if game is not None and game.ready != "lease":
        return Decision.ADOPT  # its servers write no lease
    if has_lease:
        return Decision.ADOPT
    if has_lease is None or connected_for is None or min(connected_for, found_for) < grace:
        return Decision.WAIT
    if game is not None and now < record.created_at + game.start_timeout:
        return Decision.WAIT
    return Decision.STOP


class LeaseProbe:
    """What NATS knows about the servers of an earlier launcher: their leases, and whether a lease can be written."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._leases = buckets(bus).gameservers
        self._matchmaker_since: float | None = None

    async def has_lease(self, deployment_id: str) -> bool | None:
        """Whether a deployment has a lease; None when NATS does not answer. Raises nothing."""
        try:
            return await self._leases.get(deployment_id) is not None
        except TipoffError as exc:
            log.warning("whether %s has a lease is unknown: %s", deployment_id, exc)
            return None

    async def writable_since(self, record: Record) -> float | None:
        """Since when (in monotonic seconds) the server's lease can be written, as far as the calls of this method
        show: since NATS is connected, and in the isolated profile since a matchmaker answers that hears the
        servers, because it writes the leases there. None when it cannot. Raises nothing."""
        if not record.isolated:
            return self._bus.connected_since
        try:
            answer = await self._bus.request(self._bus.subjects.ping_matchmaker, b"", timeout=1)
        except Unavailable:
            self._matchmaker_since = None
            return None
        if not {DEAF_HEADER, SERVICE_ERROR_CODE}.isdisjoint(answer.headers or {}):
            self._matchmaker_since = None
        else:
            self._matchmaker_since = self._matchmaker_since or time.monotonic()
        return self._matchmaker_since


class Recovery:
    """Recovers the servers of an earlier launcher. `grace`: seconds, as the setting `adopt_grace`."""

    def __init__(
        self,
        records: Records,
        identity: StateIdentity,
        namespace: str,
        games: Games,
        backend: Backend,
        supervisor: Supervisor,
        probe: LeaseProbe,
        tasks: Tasks,
        *,
        grace: float,
    ) -> None:
        self._records = records
        self._identity = identity
        self._namespace = namespace
        self._games = games
        self._backend = backend
        self._supervisor = supervisor
        self._probe = probe
        self._tasks = tasks
        self._grace = grace

    async def recover(self) -> None:
        """Hand every recorded server to the supervisor, and those without a record that carry this launcher's labels.

        Call it before the first request is answered. Raises `OrchestratorError` when the back end does not say what
        runs.
        """
        records, unreadable = self._records.load()
        for directory in unreadable:
            log.error("%s holds no readable record; it is kept, without its key", directory)
            (directory / PRIVATE_KEY).unlink(missing_ok=True)
        for record in records:
            if not self._identity.owns(record):
                self._leave_alone(record)
            elif record.namespace == self._namespace:
                await self._recover(record)
            elif record.state is not RunState.STOPPED:
                log.warning(
                    "%s belongs to namespace %r and is not touched", record.deployment_id, record.namespace
                )

        ours = [record for record in records if record.namespace == self._namespace]
        for record in await self._backend.find_unrecorded([r.deployment_id for r in ours if r.native_id]):
            running = await self._find(record)
            if running is not None:
                log.warning("%s runs without a record: %s", record.deployment_id, record.native_id)
                self._records.save(record)
                self._take_over(record, running)

    def _leave_alone(self, record: Record) -> None:
        """Record that a server of the directory from which this one was copied has ended for this launcher."""
        if record.state is not RunState.STOPPED:
            log.warning(
                "%s belongs to the state directory that this one was copied from, and is not touched",
                record.deployment_id,
            )
            record = msgspec.structs.replace(
                record,
                state=RunState.STOPPED,
                stopped_at=time.time(),
                reason="it belongs to the state directory that this launcher's was copied from",
            )
            self._records.save(record)
        self._supervisor.adopt_ended(record)

    async def _recover(self, record: Record) -> None:
        id = record.deployment_id
        if record.state is RunState.STOPPED:
            self._supervisor.adopt_ended(record)
            return
        if not record.native_id:  # it never ran, so the same id may still be started
            self._records.forget(id)
            return
        if record.backend != self._backend.name:
            log.error(
                "%s was started by the back end %s, and this one is %s: it is not touched",
                id,
                record.backend,
                self._backend.name,
            )
            return
        running = await self._find(record)
        if running is None:
            await self._backend.clean_up(record.native_id, id)
            self._supervisor.adopt_ended(record)
            return
        log.info("%s is running: %s", id, record.native_id)
        self._take_over(record, running)

    async def _find(self, record: Record) -> RunningServer | None:
        id = record.deployment_id
        return await self._backend.find(record.native_id, id, self._records.log(id))

    def _take_over(self, record: Record, running: RunningServer) -> None:
        if record.owner != self._identity.id:
            record = msgspec.structs.replace(record, owner=self._identity.id)
            self._records.save(record)
        self._supervisor.adopt(record, running)
        if not record.stopping:
            self._tasks.start(self._decide(record), f"{record.deployment_id}/adoption")

    async def _decide(self, record: Record) -> None:
        """Keep a server found running, or stop it, once that can be decided."""
        id = record.deployment_id
        game = self._games.get(record.game, record.version)
        found = time.monotonic()
        while self._supervisor.runs(id):
            since = await self._probe.writable_since(record)
            has_lease = await self._probe.has_lease(id)
            now = time.monotonic()
            decision = decide(
                record,
                game,
                has_lease=has_lease,
                connected_for=None if since is None else now - since,
                found_for=now - found,
                grace=self._grace,
                now=time.time(),
            )
            if decision is Decision.ADOPT:
                log.info("%s is adopted", id)
                return
            if decision is Decision.STOP:
                log.warning("%s has no lease after %.0f s; it is stopped", id, self._grace)
                with contextlib.suppress(OrchestratorUnavailable):  # its own task goes on killing it
                    await self._supervisor.stop(id)
                return
            await asyncio.sleep(min(1.0, max(0.05, self._grace / 10)))
