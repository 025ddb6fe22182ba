"""How a server ends: record stopping -> orchestrator told, its sessions ended -> record gone -> reservation removed.

Each line may be the last one before the process dies: the record then says `stopping`, and after its deadline the
sweep of any matchmaker begins again. Every step may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from tipoff_matchmaker import failpoints
from tipoff_matchmaker.backoff import retried
from tipoff_matchmaker.deployments import machine as deployments
from tipoff_matchmaker.deployments.fleet_limit import Reservations
from tipoff_matchmaker.deployments.store import Ledger, NoRecord
from tipoff_orchestrator_client.base import NotConfigured, Orchestrator, OrchestratorError
from tipoff_shared.errors import TipoffError
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord

log = logging.getLogger(__name__)

STOP_RETRY = 10.0
"""Seconds after which a deployment that is still `stopping` is stopped again, by anyone."""


class Endings:
    """The deployments that this process is ending."""

    def __init__(
        self,
        ledger: Ledger,
        reservations: Reservations,
        orchestrators: Mapping[str, Orchestrator],
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        backoff: float,
        tries: int,
        end_sessions: Callable[[DeploymentRecord, str], Coroutine[Any, Any, None]],
    ) -> None:
        self._ledger = ledger
        self._reservations = reservations
        self._orchestrators = orchestrators
        self._tasks = tasks
        self._clock = clock
        self._backoff = backoff
        self._tries = tries
        self._end_sessions = end_sessions
        self._running: dict[str, asyncio.Task[None]] = {}

    def is_running(self, deployment_id: str) -> bool:
        return deployment_id in self._running

    def start(self, deployment_id: str, reason: str, *, confirmed_gone: bool) -> asyncio.Task[None]:
        """One ending for each deployment at a time. `confirmed_gone`: its orchestrator has said that it runs no
        more, so there is nothing to stop."""
        task = self._running.get(deployment_id)
        if task is None:
            task = self._tasks.start(self._end(deployment_id, reason, confirmed_gone), f"end/{deployment_id}")
            self._running[deployment_id] = task
            task.add_done_callback(lambda _: self._running.pop(deployment_id, None))
        return task

    async def _end(self, deployment_id: str, reason: str, confirmed_gone: bool) -> None:
        until = self._clock() + STOP_RETRY
        try:
            record = await self._ledger.change(
                deployment_id, lambda record: deployments.stopping(record, reason, until)
            )
            log.info("ending server %s: %s", deployment_id, reason)
            # Each is tried whatever becomes of the other; only then is the record closed.
            works = [self._end_sessions(record, reason)]
            if not confirmed_gone:
                works.append(self._stop(record))
            for outcome in await asyncio.gather(*works, return_exceptions=True):
                if outcome is not None:
                    raise outcome
            failpoints.reach("E3")
            await self._ledger.change(deployment_id, lambda record: deployments.gone(record, reason))
            await self._reservations.remove(record.game, record.version, deployment_id)
        except NoRecord:
            log.info("server %s was ended by somebody else", deployment_id)
        except (TipoffError, OrchestratorError) as exc:
            log.warning("server %s could not be ended yet, the sweep tries again: %s", deployment_id, exc)

    async def _stop(self, record: DeploymentRecord) -> None:
        orchestrator = self._orchestrators.get(record.orchestrator)
        if orchestrator is None:
            raise NotConfigured(f"there is no orchestrator {record.orchestrator!r} here to stop {record.id}")
        await retried(
            lambda: orchestrator.stop(record.id),
            tries=self._tries,
            first=self._backoff,
            on_failure=lambda number, exc: log.warning("stop %s, try %d: %s", record.id, number, exc),
        )
