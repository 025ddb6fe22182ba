"""What the sweep looks at: everything that is written down, and what the orchestrators say runs.

The order of reading is what the rules count on (rules.py). What is read is learnt on the way: the ledger, the leases
and the deadlines of sessions follow it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from tipoff_matchmaker.deployments.store import Ledger
from tipoff_matchmaker.fleet.liveness import Servers
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.reconciler.rules import Facts
from tipoff_matchmaker.sessions.machine import is_open
from tipoff_matchmaker.sessions.store import SessionBook
from tipoff_orchestrator_client.base import Deployment, Orchestrator, OrchestratorError
from tipoff_shared.games import Game, GameKey
from tipoff_shared.kv.bucket import Entry
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionRecord

T = TypeVar("T")

log = logging.getLogger(__name__)

_ORCHESTRATOR_TIMEOUT = 5.0
_LISTING_SHARE = 20
"""A listing of all sessions takes at most one part in so many of the time."""
_SELDOM = 10
"""Those who do not reconcile list sessions so many times less often: only to forget what others have ended."""


class Readings:
    """`on_session` is told of every session listed. `settle`: seconds of being connected after which a missing lease
    or connection means something."""

    def __init__(
        self,
        bus: Bus,
        buckets: Buckets,
        games: Mapping[GameKey, Game],
        ledger: Ledger,
        servers: Servers,
        book: SessionBook,
        orchestrators: Mapping[str, Orchestrator],
        metrics: Metrics,
        *,
        clock: Callable[[], float],
        listing_interval: float,
        settle: float,
        on_session: Callable[[SessionRecord], None],
    ) -> None:
        self._bus = bus
        self._buckets = buckets
        self._games = games
        self._ledger = ledger
        self._servers = servers
        self._book = book
        self._orchestrators = orchestrators
        self._metrics = metrics
        self._clock = clock
        self._listing_interval = listing_interval
        self._settle = settle
        self._on_session = on_session
        self._next_listing = 0.0

    def list_sessions_next(self) -> None:
        """Whatever the interval says."""
        self._next_listing = 0.0

    @property
    def settled(self) -> bool:
        """Connected for long enough that a missing lease or connection means something."""
        since = self._bus.connected_since
        return since is not None and time.monotonic() - since >= self._settle

    async def read(self, reconciles: bool) -> Facts:
        """Raises `Unavailable` when the store cannot be read. `reconciles`: whether they will be acted upon."""
        sessions: dict[str, Entry[SessionRecord]] | None = None
        connections: frozenset[str] | None = None
        departures: dict[str, int] = {}
        if (started := time.monotonic()) >= self._next_listing:
            latest = await self._buckets.active_connections.list_latest()
            connections = frozenset(id for id, change in latest.items() if change.value is not None)
            departures = {id: change.revision for id, change in latest.items() if change.value is None}
            sessions = await self._buckets.sessions.list()
            took = time.monotonic() - started
            self._next_listing = time.monotonic() + max(
                self._listing_interval * (1 if reconciles else _SELDOM), took * _LISTING_SHARE
            )
            for entry in sessions.values():
                self._on_session(entry.value)
            self._book.forget_all_but({id for id, entry in sessions.items() if is_open(entry.value)})
            self._metrics.sessions_seen(entry.value for entry in sessions.values())
        before = await self._deployments()
        leases = await self._buckets.gameservers.list()
        self._servers.remember(leases)
        fleets = await self._buckets.fleets.list()
        names = list(self._orchestrators)
        listed: dict[str, dict[str, Deployment] | None] = dict.fromkeys(names)
        doubtful = any(
            record.state is DeploymentState.READY and not self._servers.trusted(record.id)
            for record in before.values()
        )
        if reconciles or doubtful:
            listed = dict(
                zip(names, await asyncio.gather(*(self._listed(name) for name in names)), strict=True)
            )
        after = await self._deployments()
        self._metrics.deployments_seen(after.values())
        return Facts(
            now=self._clock(),
            settled=self.settled,
            games=self._games,
            before=before,
            after=after,
            leases=_values(leases),
            listed=listed,
            fleets=_values(fleets),
            sessions=None if sessions is None else _values(sessions),
            connections=connections,
            departures=departures,
        )

    async def _deployments(self) -> dict[str, DeploymentRecord]:
        """All records; the ledger learns them too."""
        known = dict(self._ledger.entries)
        listed = await self._buckets.deployments.list()
        for entry in listed.values():
            self._ledger.observe(entry)
        for deployment_id, entry in known.items():
            if deployment_id not in listed and self._ledger.entries.get(deployment_id) is entry:
                self._ledger.vanished(deployment_id)
        return _values(listed)

    async def _listed(self, name: str) -> dict[str, Deployment] | None:
        try:
            async with asyncio.timeout(_ORCHESTRATOR_TIMEOUT):
                found = await self._orchestrators[name].list()
        except (OrchestratorError, TimeoutError) as exc:
            log.info("orchestrator %s does not say what runs: %s", name, str(exc) or type(exc).__name__)
            return None
        return {deployment.deployment_id: deployment for deployment in found}


def _values(entries: Mapping[str, Entry[T]]) -> dict[str, T]:
    return {key: entry.value for key, entry in entries.items()}
