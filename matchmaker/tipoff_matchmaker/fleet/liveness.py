"""Watches which servers live: their leases, what their orchestrators say, and what follows from both.

A lease that exists, is newer than this process, or is confirmed by the orchestrator makes a server trusted: players are
sent there. A lease that was deleted or has expired is a suspicion: no new players, and the orchestrator is asked. A
server it reports gone is stopped at once; one that still runs without a lease is left to the reconciler's grace period.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.readiness import Readiness
from tipoff_matchmaker.fleet.start import Starter
from tipoff_matchmaker.fleet.stop import Stopper
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.hearing import Hearing
from tipoff_orchestrator_client.base import Deployment, Orchestrator, OrchestratorError, RunState
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import Games
from tipoff_shared.kv.bucket import Bucket, Entry
from tipoff_shared.kv.changes import Change
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.text import one_line
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease
from tipoff_shared.session_end import NO_HEARTBEAT

log = logging.getLogger(__name__)


class Liveness:
    """The leases of all servers as one matchmaker knows them, and its questions to the orchestrators."""

    def __init__(
        self,
        leases: Bucket[GameserverLease],
        games: Games,
        deployments: DeploymentStore,
        orchestrators: Mapping[str, Orchestrator],
        trust: Trust,
        readiness: Readiness,
        starter: Starter,
        stopper: Stopper,
        hearing: Hearing,
        tasks: Tasks,
    ) -> None:
        self._bucket = leases
        self._games = games
        self._deployments = deployments
        self._orchestrators = orchestrators
        self._trust = trust
        self._readiness = readiness
        self._starter = starter
        self._stopper = stopper
        self._hearing = hearing
        self._tasks = tasks
        self._leases: dict[str, Entry[GameserverLease]] = {}
        self._before_start = 0
        self._confirming: set[str] = set()
        self._again: dict[str, str] = {}
        """Deployments to ask about once more, because something was heard during the question; and why."""
        self._listeners: list[Callable[[DeploymentRecord, str], None]] = []
        deployments.subscribe_states(self._state_changed)

    def subscribe(self, listener: Callable[[DeploymentRecord, str], None]) -> None:
        """Call `listener(record, reason)` for each ready server that has ended by itself."""
        self._listeners.append(listener)

    def _state_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        if after.state is DeploymentState.GONE:
            self._leases.pop(after.id, None)

    # Leases.

    async def refresh(self, *, at_start: bool = False) -> dict[str, GameserverLease]:
        """List all leases. At start the listing does not say which servers live: it may be older than a crash. Raises
        `Unavailable`."""
        self._leases = await self._bucket.list()
        if at_start:
            self._before_start = max((entry.revision for entry in self._leases.values()), default=0)
            self._hearing.began(self._before_start)
        return {deployment_id: entry.value for deployment_id, entry in self._leases.items()}

    def forget_all(self) -> None:
        """Forget every lease: the bucket was lost, and revisions begin anew."""
        self._leases.clear()
        self._before_start = 0

    async def lease_changed(self, change: Change[GameserverLease]) -> None:
        """Handle one message of the leases' consumer; it may be older than the key. Raises `Unavailable`."""
        if change.value is None:
            await self._lease_gone(change)
            return
        known = self._leases.get(change.key)
        if known is not None and known.revision >= change.revision:
            return
        if (
            known is not None
            and _same(known.value, change.value)
            and change.key in self._trust
            and self._in_record(change.value)
        ):
            self._leases[change.key] = Entry(change.key, change.value, change.revision)
            return  # a heartbeat
        if change.revision <= self._before_start:
            return  # from before this process: the reconciler asks the orchestrator first
        current = await self._bucket.get(change.key)
        if current is None or current.revision != change.revision:
            return  # there is a newer message
        self._leases[change.key] = current
        await self._readiness.lease_seen(current.value)

    def _in_record(self, lease: GameserverLease) -> bool:
        """Whether the record has what a matchmaker of an earlier release drops when it writes."""
        record = self._deployments.get(lease.deployment_id)
        return record is None or (record.locked, record.expects) == (lease.locked, lease.expects)

    async def _lease_gone(self, change: Change[GameserverLease]) -> None:
        known = self._leases.get(change.key)
        if known is not None and known.revision > change.revision:
            return
        current = await self._bucket.get(change.key)
        if current is not None:
            return  # it is back already, and its message is on its way
        self._leases.pop(change.key, None)
        if self._deployments.get(change.key) is not None:
            self.suspect(change.key, NO_HEARTBEAT if change.expired else "it said goodbye")

    # Suspicion and certainty.

    def suspect(self, deployment_id: str, why: str) -> None:
        """Send no new players there until the server is known to live, and ask its orchestrator."""
        self._trust.remove(deployment_id)
        self.confirm(deployment_id, why)

    def confirm(self, deployment_id: str, why: str) -> None:
        """Ask the orchestrator whether the server still runs; if not, stop it. One question at a time."""
        if deployment_id in self._confirming:
            self._again[deployment_id] = why
        elif not self._stopper.is_stopping(deployment_id):
            self._confirming.add(deployment_id)
            task = self._tasks.start(self._confirm(deployment_id, why), f"confirm/{deployment_id}")
            task.add_done_callback(lambda task: self._confirmed(deployment_id, task))

    def _confirmed(self, deployment_id: str, task: asyncio.Task[None]) -> None:
        self._confirming.discard(deployment_id)
        why = self._again.pop(deployment_id, None)
        if why is not None and not task.cancelled():
            self.confirm(deployment_id, why)

    async def _confirm(self, deployment_id: str, why: str) -> None:
        record = self._deployments.get(deployment_id)
        orchestrator = None if record is None else self._orchestrators.get(record.orchestrator)
        if record is None or orchestrator is None:
            return
        try:
            found = await orchestrator.get(deployment_id)
        except OrchestratorError as exc:
            log.warning("is server %s alive (%s)? %s; asking again later", deployment_id, why, exc)
            return
        if found is None and record.state is DeploymentState.PLANNED:
            return  # its orchestrator may not have been called yet
        if found is None or found.state is RunState.STOPPED:
            reason = one_line(found.reason if found is not None else "") or "the server is gone"
            self._trust.remove(deployment_id)
            # While this process starts it, the orchestrator may be about to get our call: then it is stopped, too.
            gone = not self._starter.is_starting(deployment_id)
            if record.state is DeploymentState.READY:
                for listener in self._listeners:
                    listener(record, reason)
            self._stopper.stop(deployment_id, reason, confirmed_gone=gone)
        elif state_machine.is_coming(record) and self._is_ready_by_running(record, found):
            try:
                await self._readiness.runs(found)
            except TipoffError as exc:
                log.info("that %s runs is left to the reconciler: %s", deployment_id, exc)
        elif record.state is DeploymentState.READY and (deployment_id in self._leases or not record.boot_id):
            self._trust.add(deployment_id)  # the suspicion was not about its lease, and was wrong

    # What orchestrators tell.

    async def follow(self, orchestrator: Orchestrator) -> None:
        """Read its events until cancelled. They are hints: each is confirmed before anything is taken away."""

        async def read(pauses: Backoff) -> None:
            async for deployment in orchestrator.events():
                pauses.reset()
                self._event(deployment)

        await run_forever(
            read,
            first_pause=0.5,
            longest_pause=10,
            retry_on=(OrchestratorError, TipoffError),
            on_failure=lambda failures, exc: log.info("events of %s: %s", orchestrator.name, exc),
        )

    def _event(self, deployment: Deployment) -> None:
        record = self._deployments.get(deployment.deployment_id)
        if record is None:
            return
        if deployment.state is RunState.STOPPED:
            self.suspect(record.id, deployment.reason or "it stopped")
            return
        self._starter.progress(record.id, deployment.reason)
        if state_machine.is_coming(record) and self._is_ready_by_running(record, deployment):
            self.confirm(
                record.id, "it runs"
            )  # anybody may have sent the event, so the orchestrator is asked

    def _is_ready_by_running(self, record: DeploymentRecord, deployment: Deployment) -> bool:
        game = self._games.get(record.game, record.version)
        return game is not None and game.ready == "running" and deployment.state is RunState.RUNNING


def _same(one: GameserverLease, other: GameserverLease) -> bool:
    """Whether the deployment's record would be the same with either."""
    return (
        one.boot_id == other.boot_id
        and one.state is other.state
        and one.transports == other.transports
        and one.cert_digest == other.cert_digest
        and one.capacity == other.capacity
        and one.internal == other.internal
        and one.websocket_port == other.websocket_port
        and one.locked == other.locked
        and one.expects == other.expects
    )
