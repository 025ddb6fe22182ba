"""Reads what the reconciler compares: everything that is written down, and what the orchestrators say runs.

The rules rely on the order of reading (rules.py). What is read is learnt on the way: the stores, the leases and the
deadlines of sessions follow it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.liveness import Liveness
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.hearing import Hearing
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.reconciler.rules import Connection, Snapshot
from tipoff_matchmaker.sessions.deadlines import SessionDeadlines
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import Deployment, Orchestrator, OrchestratorError
from tipoff_shared.games import SomeGames
from tipoff_shared.kv.bucket import Entry
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.primitives.text import describe
from tipoff_shared.records import DeploymentState, SessionRecord

T = TypeVar("T")

log = logging.getLogger(__name__)

_ORCHESTRATOR_TIMEOUT = 5.0
_LISTING_SHARE = 20
"""A listing of all sessions takes at most one part in so many of the time."""
_SELDOM = 10
"""Matchmakers that do not reconcile list sessions so many times less often: only to forget what others have ended."""


class SnapshotReader:
    """Reads one `Snapshot` for each cycle."""

    def __init__(
        self,
        ages: BucketAges,
        buckets: Buckets,
        games: SomeGames,
        deployments: DeploymentStore,
        orchestrators: Mapping[str, Orchestrator],
        trust: Trust,
        liveness: Liveness,
        sessions: SessionStore,
        deadlines: SessionDeadlines,
        hearing: Hearing,
        metrics: Metrics,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._ages = ages
        self._buckets = buckets
        self._games = games
        self._deployments = deployments
        self._orchestrators = orchestrators
        self._trust = trust
        self._liveness = liveness
        self._sessions = sessions
        self._deadlines = deadlines
        self._hearing = hearing
        self._metrics = metrics
        self._listing_interval = settings.listing_interval
        self._clock = clock
        self._next_listing = 0.0
        self._losses = 0
        ages.subscribe(self._lost)

    def _lost(self, bucket: str) -> None:
        self._losses += 1
        self.list_sessions_next()

    def list_sessions_next(self) -> None:
        """List all sessions in the next cycle, whatever the interval says."""
        self._next_listing = 0.0

    async def read(self, reconciles: bool) -> Snapshot:
        """`reconciles`: whether the snapshot will be acted upon. Raises `Unavailable` when NATS cannot be read."""
        await self._ages.read()
        while True:
            losses = self._losses
            snapshot = await self._read(reconciles)
            # NATS may have gone and come back empty between two listings: what was read then proves nothing.
            await self._ages.read()
            if losses == self._losses:
                return snapshot
            log.warning("NATS lost records while they were read; they are read once more")

    async def _read(self, reconciles: bool) -> Snapshot:
        sessions: dict[str, Entry[SessionRecord]] | None = None
        connections: dict[str, Connection] | None = None
        departures: dict[str, int] = {}
        if (started := time.monotonic()) >= self._next_listing:
            latest = await self._buckets.active_connections.list_latest()
            connections = {
                id: Connection(change.value, change.server)
                for id, change in latest.items()
                if change.value is not None
            }
            departures = {id: change.revision for id, change in latest.items() if change.value is None}
            sessions = await self._buckets.sessions.list()
            took = time.monotonic() - started
            self._next_listing = time.monotonic() + max(
                self._listing_interval * (1 if reconciles else _SELDOM), took * _LISTING_SHARE
            )
            self._sessions.listed(sessions)
            self._metrics.sessions_seen(entry.value for entry in sessions.values())
        before = await self._deployments.refresh()
        leases = await self._liveness.refresh()
        fleets = await self._buckets.fleets.list()
        names = list(self._orchestrators)
        listed: dict[str, dict[str, Deployment] | None] = dict.fromkeys(names)
        doubtful = any(
            record.state is DeploymentState.READY and record.id not in self._trust
            for record in before.values()
        )
        if reconciles or doubtful:
            listed = dict(
                zip(names, await asyncio.gather(*(self._listed(name) for name in names)), strict=True)
            )
        after = await self._deployments.refresh()
        self._ages.compare(lease.started_at for lease in leases.values())
        self._metrics.deployments_seen(after.values())
        return Snapshot(
            now=self._clock(),
            settled=self._hearing.settled,
            deaf=self._hearing.deaf,
            games=self._games.by_key(),
            before=before,
            after=after,
            leases=leases,
            listed=listed,
            fleets=_values(fleets),
            sessions=None if sessions is None else _values(sessions),
            connections=connections,
            departures=departures,
            lost=self._ages.lost,
        )

    async def _listed(self, name: str) -> dict[str, Deployment] | None:
        try:
            async with asyncio.timeout(_ORCHESTRATOR_TIMEOUT):
                found = await self._orchestrators[name].list()
        except (OrchestratorError, TimeoutError) as exc:
            log.info("orchestrator %s does not list its servers: %s", name, describe(exc))
            return None
        return {deployment.deployment_id: deployment for deployment in found}


def _values(entries: Mapping[str, Entry[T]]) -> dict[str, T]:
    return {key: entry.value for key, entry in entries.items()}
