"""What the sweep does: one deed for each act (acts.py). Everything is checked again by the compare-and-set that does
it, so an act chosen by facts that have grown old does no harm, and may be done twice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from tipoff_matchmaker.deployments import machine as deployments
from tipoff_matchmaker.deployments.fleet_limit import Reservations
from tipoff_matchmaker.deployments.store import Ledger, NoRecord
from tipoff_matchmaker.fleet.liveness import Servers
from tipoff_matchmaker.fleet.planner import Fleet
from tipoff_matchmaker.fleet.stop import STOP_RETRY
from tipoff_matchmaker.reconciler import actions as acts
from tipoff_matchmaker.seats.rules import leave
from tipoff_matchmaker.sessions.machine import DeadlinePassed, Left, ServerGone
from tipoff_matchmaker.sessions.release import EVERYTHING, GiveBack
from tipoff_matchmaker.sessions.store import SessionBook
from tipoff_orchestrator_client.base import Deployment, Orchestrator, OrchestratorError
from tipoff_shared.kv.bucket import Full
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.records import DeploymentRecord, GameserverLease, SessionState

log = logging.getLogger(__name__)


class Deeds:
    def __init__(
        self,
        buckets: Buckets,
        ledger: Ledger,
        reservations: Reservations,
        fleet: Fleet,
        servers: Servers,
        book: SessionBook,
        give_back: GiveBack,
        orchestrators: Mapping[str, Orchestrator],
        *,
        clock: Callable[[], float],
        look_for_digest: Callable[[Deployment], Coroutine[Any, Any, None]],
    ) -> None:
        self._buckets = buckets
        self._ledger = ledger
        self._reservations = reservations
        self._fleet = fleet
        self._servers = servers
        self._book = book
        self._give_back = give_back
        self._orchestrators = orchestrators
        self._clock = clock
        self._look_for_digest = look_for_digest

    async def do(self, act: acts.Act) -> None:
        """Raises a `TipoffError` when it has to wait for another sweep."""
        match act:
            case acts.Trust(deployment_id):
                self._servers.trust(deployment_id)
            case acts.Follow(lease):
                await self._follow(lease)
            case acts.Arrive(deployment):
                await self._servers.runs(deployment)
            case acts.LookForDigest(deployment):
                await self._look_for_digest(deployment)
            case acts.NotePlace(deployment):
                with contextlib.suppress(NoRecord):
                    await self._fleet.starts.note_place(deployment)
            case acts.Confirm(deployment_id, why):
                self._servers.suspect(deployment_id, why)
            case acts.End(deployment_id, reason):
                self._servers.distrust(deployment_id)
                self._fleet.end(deployment_id, reason)
            case acts.Shrink(deployment_id):
                await self._shrink(deployment_id)
            case acts.StopUnknown(orchestrator, deployment_id):
                await self._stop_unknown(orchestrator, deployment_id)
            case acts.Unreserve(game, version, deployment_id):
                await self._reservations.remove(game, version, deployment_id)
            case acts.FreeSeats(deployment_id, seats):
                await self._free(deployment_id, seats)
            case acts.Happen(session_id, event):
                outcome = await self._book.apply(session_id, event)
                if outcome.changed and isinstance(event, ServerGone) and not event.living_boot:
                    await self._buckets.active_connections.forget(session_id, EVERYTHING)
            case acts.CheckSession(session_id):
                await self.check_session(session_id)
            case acts.FinishClosing(session):
                self._give_back.start(session)
            case acts.DropConnection(session_id):
                await self._buckets.active_connections.forget(session_id, EVERYTHING)
            case acts.ForgetDeparture(session_id, revision):
                await self._buckets.active_connections.forget(session_id, revision)

    async def check_session(self, session_id: str) -> None:
        """Before anything is closed for its deadline or its absence: is the player connected?

        The record is read first: where it says `active`, there has been a connection, and if that is not there
        afterwards, the player has left. The other way round, one who comes in between would be thrown out.
        """
        record = await self._book.read(session_id)
        if record is None:
            return
        latest = await self._buckets.active_connections.latest(session_id)
        connected = latest is not None and latest.value is not None
        if not connected and (latest is not None or record.state is SessionState.ACTIVE):
            await self._book.apply(session_id, Left())
        else:
            await self._book.apply(session_id, DeadlinePassed(connected))

    async def _follow(self, lease: GameserverLease) -> None:
        current = await self._buckets.gameservers.get(lease.deployment_id)
        if current is not None:
            await self._servers.lease_seen(current.value)

    async def _shrink(self, deployment_id: str) -> None:
        reason = "it is not needed"
        try:
            record = await self._ledger.change(
                deployment_id, lambda record: deployments.draining(record, reason, only_empty=True)
            )
        except Full:  # of all that may follow `ready`, `stopping` alone can be written in fewer bytes
            until = self._clock() + STOP_RETRY
            record = await self._ledger.change(
                deployment_id,
                lambda record: record if record.seats else deployments.stopping(record, reason, until),
            )
        if not record.seats:
            self._fleet.end(deployment_id, reason)

    async def _stop_unknown(self, orchestrator: str, deployment_id: str) -> None:
        record = await self._ledger.fetch(deployment_id)
        if record is not None and deployments.is_live(record):
            return
        log.warning("%s runs %s, which is in no record; stopping it", orchestrator, deployment_id)
        try:
            await self._orchestrators[orchestrator].stop(deployment_id)
        except OrchestratorError as exc:
            log.warning("stopping %s: %s; again later", deployment_id, exc)

    async def _free(self, deployment_id: str, seats: Mapping[str, float]) -> None:
        now = self._clock()

        def free(record: DeploymentRecord) -> DeploymentRecord:
            for member, until in seats.items():
                record = leave(record, (member,), now, until=until)
            return record

        try:
            await self._ledger.change(deployment_id, free)
        except NoRecord:
            return
        log.warning("%d seat(s) on %s were nobody's and are free again", len(seats), deployment_id)
