"""Stops servers: record stopping -> orchestrator called, its sessions ended -> record gone -> reservation removed.

Each step may be the last one before the process dies: the record then says `stopping`, and after its deadline the
reconciler of any matchmaker begins again. Every step may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.fleet_limit import FleetLimit
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord
from tipoff_matchmaker.orchestrators.retry import retried
from tipoff_matchmaker.sessions.server_gone import SessionEnder
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import NotConfigured, Orchestrator, OrchestratorError
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import GameKey
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.waiting import gather_then_raise
from tipoff_shared.records import DeploymentRecord, DeploymentState

log = logging.getLogger(__name__)

STOP_RETRY = 10.0
"""Seconds after which a deployment that is still `stopping` is stopped again, by anyone."""

Listener: TypeAlias = Callable[[GameKey], None]


class Stopper:
    """The deployments that this process stops; each once at a time."""

    def __init__(
        self,
        deployments: DeploymentStore,
        fleet_limit: FleetLimit,
        orchestrators: Mapping[str, Orchestrator],
        ender: SessionEnder,
        tasks: Tasks,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._deployments = deployments
        self._fleet_limit = fleet_limit
        self._orchestrators = orchestrators
        self._ender = ender
        self._settings = settings
        self._clock = clock
        self._stops = SingleFlight[str, None]("stop", begin=tasks.start)
        self._listeners: list[Listener] = []

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` when a stop of one of a game's servers has ended, also by an error. Its reservation has been
        removed before: a planner that wakes up earlier would still be at its limit."""
        self._listeners.append(listener)

    def is_stopping(self, deployment_id: str) -> bool:
        """Whether this process stops it right now."""
        return deployment_id in self._stops

    def stop(self, deployment_id: str, reason: str, *, confirmed_gone: bool = False) -> None:
        """Stop the server, end its sessions, free its reservation; idempotent. `confirmed_gone`: the orchestrator has
        said that the server no longer runs, so it is not called."""
        if deployment_id in self._stops:
            return
        record = self._deployments.get(deployment_id)
        key = None if record is None else (record.game, record.version)
        task = self._stops.start(deployment_id, lambda: self._stop(deployment_id, reason, confirmed_gone))
        if key is not None:
            task.add_done_callback(lambda _: self._stopped(key))

    async def drain(self, deployment_id: str, reason: str) -> None:
        """No new players there; the server is stopped when its last player has left. Raises `Unavailable`."""
        try:
            record = await self._deployments.change(
                deployment_id, lambda record: state_machine.draining(record, reason, only_empty=False)
            )
        except NoRecord:
            return
        if record.state is DeploymentState.DRAINING and not record.seats:
            self.stop(deployment_id, reason)

    def _stopped(self, key: GameKey) -> None:
        for listener in self._listeners:
            listener(key)

    async def _stop(self, deployment_id: str, reason: str, confirmed_gone: bool) -> None:
        until = self._clock() + STOP_RETRY
        try:
            record = await self._deployments.change(
                deployment_id, lambda record: state_machine.stopping(record, reason, until)
            )
            log.info("stopping server %s: %s", deployment_id, reason)
            # Each is tried whatever becomes of the other; only then is the record closed.
            works = [self._ender.end_sessions(record, reason)]
            if not confirmed_gone:
                works.append(self._stop_at_orchestrator(record))
            await gather_then_raise(*works)
            failpoints.reach("E3")
            await self._deployments.change(deployment_id, lambda record: state_machine.gone(record, reason))
            await self._fleet_limit.remove(record.game, record.version, deployment_id)
        except NoRecord:
            log.info("server %s was stopped by another matchmaker", deployment_id)
        except (TipoffError, OrchestratorError) as exc:
            log.warning(
                "server %s could not be stopped yet, the reconciler tries again: %s", deployment_id, exc
            )

    async def _stop_at_orchestrator(self, record: DeploymentRecord) -> None:
        orchestrator = self._orchestrators.get(record.orchestrator)
        if orchestrator is None:
            raise NotConfigured(f"there is no orchestrator {record.orchestrator!r} here to stop {record.id}")
        await retried(
            lambda: orchestrator.stop(record.id),
            tries=self._settings.deploy_tries,
            first=self._settings.backoff,
            on_failure=lambda number, exc: log.warning("stop %s, try %d: %s", record.id, number, exc),
        )
