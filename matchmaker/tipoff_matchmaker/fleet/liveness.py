"""Which servers live: their leases, what their orchestrators say, and what follows from both.

A lease that is there, newer than this process, or confirmed by the orchestrator, makes a server trusted: players are
sent there. A lease that is not there any more is a suspicion: no new players, and the orchestrator is asked. What it
says is gone is ended at once; what still runs without a lease is left to the sweep's grace period.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tipoff_matchmaker.backoff import pause
from tipoff_matchmaker.deployments import machine as deployments
from tipoff_matchmaker.deployments.readiness import Arrival, from_lease, from_orchestrator
from tipoff_matchmaker.deployments.store import Ledger, NoRecord
from tipoff_matchmaker.fleet.planner import Fleet
from tipoff_matchmaker.fleet.start_backoff import brief
from tipoff_matchmaker.sessions.machine import ServerGone
from tipoff_matchmaker.sessions.release import EVERYTHING
from tipoff_matchmaker.sessions.store import SessionBook
from tipoff_matchmaker.tokens import Tokens
from tipoff_orchestrator_client.base import Deployment, Orchestrator, OrchestratorError, RunState
from tipoff_shared.errors import OrchestratorFailed, TipoffError
from tipoff_shared.games import Games
from tipoff_shared.kv.bucket import Entry
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.kv.changes import Change
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    GameserverLease,
    LeaseState,
)

log = logging.getLogger(__name__)

_AT_ONCE = 100


class Servers:
    """The living servers of all games, as one matchmaker knows them."""

    def __init__(
        self,
        buckets: Buckets,
        games: Games,
        ledger: Ledger,
        tokens: Tokens,
        tasks: Tasks,
        book: Callable[[], SessionBook],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._buckets = buckets
        self._games = games
        self._ledger = ledger
        self._tokens = tokens
        self._tasks = tasks
        self._book = book
        self._clock = clock
        self._trusted: set[str] = set()
        self._leases: dict[str, Entry[GameserverLease]] = {}
        self._before_start = 0
        self._confirming: set[str] = set()
        self._again: dict[str, str] = {}
        """Whom to ask about once more, because something was heard while the question was on its way: and why."""
        self._fleet: Fleet | None = None
        self._on_trust: Callable[[str], None] = lambda deployment_id: None

    @property
    def fleet(self) -> Fleet:
        assert self._fleet is not None
        return self._fleet

    def join(self, fleet: Fleet, on_trust: Callable[[str], None]) -> None:
        """The other parts; `on_trust(id)` is called whenever a server's being trusted changes."""
        self._fleet = fleet
        self._on_trust = on_trust
        self._ledger.listen(self._ledger_changed)

    # Trust.

    def trusted(self, deployment_id: str) -> bool:
        return deployment_id in self._trusted

    def trust(self, deployment_id: str) -> None:
        if deployment_id not in self._trusted:
            self._trusted.add(deployment_id)
            self._on_trust(deployment_id)

    def distrust(self, deployment_id: str) -> None:
        if deployment_id in self._trusted:
            self._trusted.discard(deployment_id)
            self._on_trust(deployment_id)

    def _ledger_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        if after.state is DeploymentState.GONE:
            self._trusted.discard(after.id)
            self._leases.pop(after.id, None)
            self._tokens.forget(after.id)

    # Leases.

    def remember(self, leases: dict[str, Entry[GameserverLease]], *, at_start: bool = False) -> None:
        """A listing of all leases. At start it says nothing of who lives: it may be older than a crash."""
        self._leases = dict(leases)
        if at_start:
            self._before_start = max((entry.revision for entry in leases.values()), default=0)

    async def lease_changed(self, change: Change[GameserverLease]) -> None:
        """One message of the leases' consumer; it may be older than the key."""
        if change.value is None:
            await self._lease_gone(change)
            return
        known = self._leases.get(change.key)
        if known is not None and known.revision >= change.revision:
            return
        if known is not None and _same(known.value, change.value) and change.key in self._trusted:
            self._leases[change.key] = Entry(change.key, change.value, change.revision)
            return  # a heartbeat
        if change.revision <= self._before_start:
            return  # from before this process: the sweep asks the orchestrator first
        current = await self._buckets.gameservers.get(change.key)
        if current is None or current.revision != change.revision:
            return  # there is a newer message
        self._leases[change.key] = current
        await self.lease_seen(current.value)

    async def lease_seen(self, lease: GameserverLease) -> None:
        """A lease as it stands now: the deployment follows it."""
        deployment_id = lease.deployment_id
        record = self._ledger.get(deployment_id) or await self._ledger.fetch(deployment_id)
        if record is None or not deployments.is_live(record):
            return
        if (record.game, record.version) != (lease.game, lease.version):
            log.warning(
                "server %s says it is %s %s, and was started as %s %s; it gets no players",
                deployment_id,
                lease.game,
                lease.version,
                record.game,
                record.version,
            )
            return
        if lease.state is LeaseState.ENDED:
            self.distrust(deployment_id)
            self.fleet.end(deployment_id, "the match is over")
            return
        if not await self.arrive(record, from_lease(lease)):
            return
        if lease.state is LeaseState.DRAINING:
            await self.drain(deployment_id, "the server lets nobody in any more")
        else:
            self.trust(deployment_id)

    async def arrive(self, before: DeploymentRecord, arrival: Arrival) -> bool:
        """Whether it can be used: its addresses are looked up now, so that no player waits for a name."""
        game = self._games.get(before.game, before.version)
        if game is not None:
            try:
                await self._tokens.endpoint(game, deployments.arrived(before, arrival, self._clock()))
            except OrchestratorFailed as exc:
                log.warning("server %s cannot be used: %s", before.id, exc)
                if not self.fleet.starts.died(before.id, str(exc)):
                    self.fleet.end(before.id, str(exc))
                return False
        await self.fleet.starts.arrived(before.id, arrival)
        if before.boot_id and arrival.boot_id != before.boot_id:
            log.warning("server %s was restarted; the sessions of its former life end", before.id)
            await self.end_sessions(before, "the server was restarted", living_boot=arrival.boot_id)
        return True

    async def runs(self, deployment: Deployment) -> None:
        """For games whose servers are ready when they run."""
        record = self._ledger.get(deployment.deployment_id)
        if record is not None and await self.arrive(record, from_orchestrator(deployment)):
            self.trust(record.id)

    async def drain(self, deployment_id: str, reason: str) -> None:
        """No new players there; it is ended when the last one has left."""
        try:
            record = await self._ledger.change(
                deployment_id, lambda record: deployments.draining(record, reason, only_empty=False)
            )
        except NoRecord:
            return
        if record.state is DeploymentState.DRAINING and not record.seats:
            self.fleet.end(deployment_id, reason)

    async def _lease_gone(self, change: Change[GameserverLease]) -> None:
        known = self._leases.get(change.key)
        if known is not None and known.revision > change.revision:
            return
        current = await self._buckets.gameservers.get(change.key)
        if current is not None:
            return  # it is back already, and its message is on its way
        self._leases.pop(change.key, None)
        if self._ledger.get(change.key) is not None:
            self.suspect(change.key, "it sends no heartbeat" if change.expired else "it said goodbye")

    # Suspicion and certainty.

    def suspect(self, deployment_id: str, why: str) -> None:
        """No new players there until it is known to live; its orchestrator is asked."""
        self.distrust(deployment_id)
        self.confirm(deployment_id, why)

    def confirm(self, deployment_id: str, why: str) -> None:
        """Ask the orchestrator whether it still runs; if not, end what was there. One question at a time."""
        if deployment_id in self._confirming:
            self._again[deployment_id] = why
        elif not self.fleet.is_ending_here(deployment_id):
            self._confirming.add(deployment_id)
            task = self._tasks.start(self._confirm(deployment_id, why), f"confirm/{deployment_id}")
            task.add_done_callback(lambda task: self._confirmed(deployment_id, task))

    def _confirmed(self, deployment_id: str, task: asyncio.Task[None]) -> None:
        self._confirming.discard(deployment_id)
        why = self._again.pop(deployment_id, None)
        if why is not None and not task.cancelled():
            self.confirm(deployment_id, why)

    async def _confirm(self, deployment_id: str, why: str) -> None:
        record = self._ledger.get(deployment_id)
        if record is None:
            return
        orchestrator = self.fleet.orchestrator(record.orchestrator)
        if orchestrator is None:
            return
        try:
            found = await orchestrator.get(deployment_id)
        except OrchestratorError as exc:
            log.warning("is server %s alive (%s)? %s; asking again later", deployment_id, why, exc)
            return
        if found is None and record.state is DeploymentState.PLANNED:
            return  # it may not have been told of it yet
        if found is None or found.state is RunState.STOPPED:
            reason = brief(found.reason if found is not None else "") or "the server is gone"
            self.distrust(deployment_id)
            if not self.fleet.starts.died(deployment_id, reason):
                self.fleet.end(deployment_id, reason, confirmed_gone=True)
        elif deployments.is_coming(record) and self._is_ready_by_running(record, found):
            try:
                await self.runs(found)
            except TipoffError as exc:
                log.info("that %s runs is left to the sweep: %s", deployment_id, exc)
        elif record.state is DeploymentState.READY and (deployment_id in self._leases or not record.boot_id):
            self.trust(deployment_id)  # the suspicion was not about its lease, and was wrong

    async def end_sessions(self, record: DeploymentRecord, reason: str, *, living_boot: str = "") -> None:
        """End what sits on a server that is gone or is to go (with `living_boot`: what sat on an earlier boot of
        it), and write for it what it can write no more."""
        room = asyncio.Semaphore(_AT_ONCE)
        event = ServerGone(record.id, reason, living_boot)

        async def end(session_id: str) -> None:
            async with room:
                outcome = await self._book().apply(session_id, event)
                if outcome.changed or outcome.record is None:
                    await self._buckets.active_connections.forget(session_id, EVERYTHING)

        outcomes = await asyncio.gather(*map(end, record.seats), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome  # after all have been tried
        if not living_boot:
            await self._buckets.gameservers.forget(record.id, EVERYTHING)
            if record.digest_key:
                await self._buckets.cert_digests.forget(record.digest_key, EVERYTHING)

    # What orchestrators and servers tell.

    async def follow(self, orchestrator: Orchestrator) -> None:
        """Its events, for ever. They are hints: each is confirmed before anything is taken from anybody."""
        tries = 0
        while True:
            try:
                async for deployment in orchestrator.events():
                    tries = 0
                    self._event(deployment)
            except (OrchestratorError, TipoffError) as exc:
                log.info("events of %s: %s", orchestrator.name, exc)
            tries += 1
            await asyncio.sleep(pause(tries, 0.5, longest=10))

    def _event(self, deployment: Deployment) -> None:
        record = self._ledger.get(deployment.deployment_id)
        if record is None:
            return
        if deployment.state is RunState.STOPPED:
            self.suspect(record.id, deployment.reason or "it stopped")
            return
        self.fleet.starts.progress(record.id, deployment.reason)
        if deployments.is_coming(record) and self._is_ready_by_running(record, deployment):
            self.confirm(record.id, "it runs")  # anybody may have sent the event: where it runs is asked

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
    )
