"""What one matchmaker does at once when NATS has lost a bucket (bucket_ages.py); the rules rebuild the records."""

from __future__ import annotations

import logging

from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.liveness import Liveness
from tipoff_matchmaker.hearing import Hearing
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.errors import TipoffError
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState, Report, encode

log = logging.getLogger(__name__)


class BucketLoss:
    """Forgets what this process knew of the lost records, and asks game servers to report again."""

    def __init__(
        self,
        bus: Bus,
        ages: BucketAges,
        deployments: DeploymentStore,
        sessions: SessionStore,
        liveness: Liveness,
        hearing: Hearing,
        tasks: Tasks,
    ) -> None:
        self._bus = bus
        self._ages = ages
        self._deployments = deployments
        self._sessions = sessions
        self._liveness = liveness
        self._hearing = hearing
        self._tasks = tasks
        ages.subscribe(self.noticed)
        deployments.subscribe_states(self._server_changed)

    def noticed(self, bucket: str) -> None:
        """The bucket was made anew."""
        match bucket:
            case "deployments":
                self._deployments.forget_all()
            case "sessions":
                self._sessions.forget_all()
            case "gameservers":
                self._liveness.forget_all()
                self._hearing.lost()
            case "active_connections":
                self._hearing.lost()
                self._tasks.start(self._ask_to_report(list(self._deployments.entries)), "lost connections")
            case _:
                pass

    def _server_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        """One whose own record was lost, too, could not be asked before."""
        if after.state is DeploymentState.READY and "active_connections" in self._ages.lost:
            self._tasks.start(self._ask_to_report([after.id]), "lost connections")

    async def _ask_to_report(self, servers: list[str]) -> None:
        try:
            for deployment_id in servers:
                await self._bus.publish(self._bus.subjects.commands(deployment_id), encode(Report()))
        except TipoffError as exc:
            log.info("servers report their connections when they reach NATS again: %s", exc)
