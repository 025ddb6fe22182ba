"""What one matchmaker does at once when NATS has lost a bucket (bucket_ages.py); the rules rebuild the records."""

from __future__ import annotations

import logging

from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.liveness import Liveness
from tipoff_matchmaker.hearing import Hearing
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.errors import TipoffError
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import Report, encode

log = logging.getLogger(__name__)


class BucketLoss:
    """Forgets what this process knew of the lost records, and asks game servers to report again."""

    def __init__(
        self,
        bus: Bus,
        deployments: DeploymentStore,
        sessions: SessionStore,
        liveness: Liveness,
        hearing: Hearing,
        tasks: Tasks,
    ) -> None:
        self._bus = bus
        self._deployments = deployments
        self._sessions = sessions
        self._liveness = liveness
        self._hearing = hearing
        self._tasks = tasks

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
                servers = list(self._deployments.entries)
                self._tasks.start(self._ask_to_report(servers), "lost connections")
            case _:
                pass

    async def _ask_to_report(self, servers: list[str]) -> None:
        try:
            for deployment_id in servers:
                await self._bus.publish(self._bus.subjects.commands(deployment_id), encode(Report()))
        except TipoffError as exc:
            log.info("servers report their connections when they reach NATS again: %s", exc)
