"""Executes the reconciler's actions (actions.py).

Everything is checked again by the compare-and-set that does it, so an action chosen by a snapshot that has grown old
does no harm, and may be repeated.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping

from tipoff_matchmaker.bevygap.contexts import BevygapContexts
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.fleet_limit import FleetLimit
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord
from tipoff_matchmaker.fleet.liveness import Liveness
from tipoff_matchmaker.fleet.readiness import Readiness
from tipoff_matchmaker.fleet.stop import STOP_RETRY, Stopper
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.reconciler import actions
from tipoff_matchmaker.seats.rules import keep, leave
from tipoff_matchmaker.sessions.deadlines import SessionDeadlines
from tipoff_matchmaker.sessions.kicker import Kicker
from tipoff_matchmaker.sessions.release import Releaser
from tipoff_matchmaker.sessions.server_gone import SessionEnder
from tipoff_matchmaker.sessions.state_machine import ServerGone, is_open
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_orchestrator_client.base import Deployment, Orchestrator, OrchestratorError
from tipoff_shared.games import Games
from tipoff_shared.kv.bucket import Full, LostRace
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.records import DeploymentRecord, GameserverLease, SessionRecord, SessionState

log = logging.getLogger(__name__)


class Executor:
    """Holds no state of its own: each action goes to the part that owns its effect."""

    def __init__(
        self,
        buckets: Buckets,
        games: Games,
        deployments: DeploymentStore,
        fleet_limit: FleetLimit,
        orchestrators: Mapping[str, Orchestrator],
        trust: Trust,
        liveness: Liveness,
        readiness: Readiness,
        contexts: BevygapContexts,
        stopper: Stopper,
        sessions: SessionStore,
        deadlines: SessionDeadlines,
        ender: SessionEnder,
        releaser: Releaser,
        kicker: Kicker,
        clock: Callable[[], float],
    ) -> None:
        self._buckets = buckets
        self._games = games
        self._deployments = deployments
        self._fleet_limit = fleet_limit
        self._orchestrators = orchestrators
        self._trust = trust
        self._liveness = liveness
        self._readiness = readiness
        self._contexts = contexts
        self._stopper = stopper
        self._sessions = sessions
        self._deadlines = deadlines
        self._ender = ender
        self._releaser = releaser
        self._kicker = kicker
        self._clock = clock

    async def execute(self, action: actions.Action) -> None:
        """Do it, or begin to. Raises a `TipoffError` when it has to wait for another cycle."""
        match action:
            case actions.Trust(deployment_id):
                self._trust.add(deployment_id)
            case actions.FollowLease(lease):
                await self._follow(lease)
            case actions.MarkReady(deployment):
                await self._readiness.runs(deployment)
            case actions.LookForDigest(deployment):
                await self._contexts.look_for_digest(deployment)
            case actions.RecordPlace(deployment):
                with contextlib.suppress(NoRecord):
                    await self._deployments.change(
                        deployment.deployment_id, lambda record: state_machine.placed(record, deployment)
                    )
            case actions.Confirm(deployment_id, why):
                self._liveness.suspect(deployment_id, why)
            case actions.StopServer(deployment_id, reason):
                self._trust.remove(deployment_id)
                self._stopper.stop(deployment_id, reason)
            case actions.StopIfEmpty(deployment_id):
                await self._stop_if_empty(deployment_id)
            case actions.StopUnknown(orchestrator, deployment_id):
                await self._stop_unknown(orchestrator, deployment_id)
            case actions.RebuildDeployment(orchestrator, deployment, seats, lease):
                await self._rebuild(orchestrator, deployment, seats, lease)
            case actions.RebuildSession(session_id, client_id, deployment_id, until):
                await self._rebuild_session(session_id, client_id, deployment_id, until)
            case actions.Reserve(game, version, deployment_id):
                await self._fleet_limit.restore(game, version, deployment_id, self._clock())
            case actions.Unreserve(game, version, deployment_id):
                await self._fleet_limit.remove(game, version, deployment_id)
            case actions.FreeSeats(deployment_id, seats):
                await self._free(deployment_id, seats)
            case actions.ApplyEvent(session_id, event):
                outcome = await self._sessions.apply(session_id, event)
                if outcome.changed and isinstance(event, ServerGone) and not event.living_boot:
                    await self._ender.forget_connection(session_id)
            case actions.CheckSession(session_id):
                await self._deadlines.check(session_id)
            case actions.ReleaseSession(session):
                self._releaser.start(session.id, session)
            case actions.CloseRecord(record):
                await self._close(record)
            case actions.KickFrom(session_id, server):
                known = await self._sessions.read(session_id)
                if known is None or not is_open(known):
                    self._kicker.start(session_id, known, server=server)
            case actions.DropConnection(session_id):
                await self._ender.forget_connection(session_id)
            case actions.ForgetDeparture(session_id, revision):
                await self._buckets.active_connections.forget(session_id, revision)

    async def _rebuild(
        self,
        orchestrator: str,
        deployment: Deployment,
        seats: Mapping[str, float],
        lease: GameserverLease | None,
    ) -> None:
        game = self._games.get(deployment.game, deployment.version)
        if game is None or game.orchestrator != orchestrator:
            return
        now = self._clock()
        created_at = lease.started_at if lease is not None else now
        record = state_machine.rebuilt(deployment, game, seats, now, created_at)
        await self._fleet_limit.restore(game.name, game.version, record.id, created_at)
        with contextlib.suppress(LostRace):  # another matchmaker has written it
            await self._deployments.create(record)
            log.warning("the lost record of server %s is rebuilt, with %d seat(s)", record.id, len(seats))
        if lease is not None:
            await self._follow(lease)

    async def _rebuild_session(
        self, session_id: str, client_id: str, deployment_id: str, until: float
    ) -> None:
        try:
            server = await self._deployments.change(
                deployment_id, lambda record: keep(record, session_id, until)
            )
        except NoRecord:
            return
        now = self._clock()
        record = SessionRecord(
            session_id,
            SessionState.ACTIVE,
            server.game,
            server.version,
            client_id,
            owner="",
            created_at=now,
            generation=1,
            deployment_id=server.id,
            boot_id=server.boot_id,
        )
        with contextlib.suppress(LostRace):  # another matchmaker has written it
            await self._sessions.create(record)
            log.warning("the lost record of session %s on %s is rebuilt", session_id, server.id)

    async def _close(self, read: DeploymentRecord) -> None:
        closed = await self._deployments.change(
            read.id,
            lambda record: state_machine.gone(record, "it had ended before") if record == read else record,
        )
        if not state_machine.is_live(closed):
            log.warning("the record of server %s, which had ended, was there again; it is closed", read.id)

    async def _follow(self, lease: GameserverLease) -> None:
        current = await self._buckets.gameservers.get(lease.deployment_id)
        if current is not None:
            await self._readiness.lease_seen(current.value)

    async def _stop_if_empty(self, deployment_id: str) -> None:
        reason = "it is not needed"
        try:
            record = await self._deployments.change(
                deployment_id, lambda record: state_machine.draining(record, reason, only_empty=True)
            )
        except Full:  # of all that may follow `ready`, only `stopping` can be written in fewer bytes
            until = self._clock() + STOP_RETRY
            record = await self._deployments.change(
                deployment_id,
                lambda record: record if record.seats else state_machine.stopping(record, reason, until),
            )
        if not record.seats:
            self._stopper.stop(deployment_id, reason)

    async def _stop_unknown(self, orchestrator: str, deployment_id: str) -> None:
        record = await self._deployments.fetch(deployment_id)
        if record is not None and state_machine.is_live(record):
            return
        log.warning("%s runs %s, which has no record; stopping it", orchestrator, deployment_id)
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
            await self._deployments.change(deployment_id, free)
        except NoRecord:
            return
        log.warning("%d seat(s) on %s belonged to no session and are free again", len(seats), deployment_id)
