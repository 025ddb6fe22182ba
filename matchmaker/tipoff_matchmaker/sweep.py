"""The sweep: every few seconds, and after every reconnect, what is written down is compared with what is.

One matchmaker at a time reconciles: it acts on what differs (reconciler_lease.py). The others only learn from their own
reading which servers live, with seldom a listing of sessions, and of what orchestrators run only when they must know.

This is the truth that all hints (watches, events, timers) only run ahead of. The decisions are rules.py's; here are
the readings and the deeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from tipoff_matchmaker import acts, deployments, rules
from tipoff_matchmaker.endings import STOP_RETRY
from tipoff_matchmaker.fleet import Fleet
from tipoff_matchmaker.give_back import EVERYTHING, GiveBack
from tipoff_matchmaker.ledger import Ledger, NoRecord
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.reconciler_lease import ReconcilerLease
from tipoff_matchmaker.reservations import Reservations
from tipoff_matchmaker.seats import leave
from tipoff_matchmaker.servers import Servers
from tipoff_matchmaker.session_book import SessionBook
from tipoff_matchmaker.sessions import DeadlinePassed, Left, ServerGone, is_open
from tipoff_orchestrator_client.base import Deployment, Orchestrator, OrchestratorError
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import Game, GameKey
from tipoff_shared.kv import Entry, Full
from tipoff_shared.nats_connection import Bus
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    GameserverLease,
    SessionRecord,
    SessionState,
)
from tipoff_shared.stores import Stores

T = TypeVar("T")

log = logging.getLogger(__name__)

_ORCHESTRATOR_TIMEOUT = 5.0
_LISTING_SHARE = 20
"""A listing of all sessions takes at most one part in so many of the time."""
_SELDOM = 10
"""Those who do not reconcile list sessions so many times less often: only to forget what others have ended."""


class Sweep:
    """One pass is `once()`; `run()` makes them for ever."""

    def __init__(
        self,
        bus: Bus,
        stores: Stores,
        games: Mapping[GameKey, Game],
        ledger: Ledger,
        reservations: Reservations,
        fleet: Fleet,
        servers: Servers,
        book: SessionBook,
        give_back: GiveBack,
        orchestrators: Mapping[str, Orchestrator],
        metrics: Metrics,
        lease: ReconcilerLease,
        *,
        clock: Callable[[], float],
        interval: float,
        listing_interval: float,
        settle: float,
        grace: rules.Grace,
        on_session: Callable[[SessionRecord], None],
        look_for_digest: Callable[[Deployment], Coroutine[Any, Any, None]],
    ) -> None:
        self._bus = bus
        self._stores = stores
        self._games = games
        self._ledger = ledger
        self._reservations = reservations
        self._fleet = fleet
        self._servers = servers
        self._book = book
        self._give_back = give_back
        self._orchestrators = orchestrators
        self._metrics = metrics
        self._lease = lease
        self._clock = clock
        self._interval = interval
        self._listing_interval = listing_interval
        self._settle = settle
        self._grace = grace
        self._on_session = on_session
        self._look_for_digest = look_for_digest
        self._memory = rules.Memory()
        self._next_listing = 0.0
        self._turn = 0
        self._now_please = asyncio.Event()

    def soon(self) -> None:
        """Do not wait for the next turn (NATS is back)."""
        self._next_listing = 0.0
        self._now_please.set()

    @property
    def settled(self) -> bool:
        """Connected for long enough that a missing lease or connection means something."""
        since = self._bus.connected_since
        return since is not None and time.monotonic() - since >= self._settle

    async def run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval * (0.75 + random.random() / 2)):
                    await self._now_please.wait()
            except TimeoutError:
                pass
            self._now_please.clear()
            try:
                await self.once()
            except TipoffError as exc:
                log.info("this sweep is left out: %s", exc)

    async def once(self) -> None:
        """Read everything, judge, act. Raises `Unavailable` when the store cannot be read."""
        reconciles, turn = self._lease.held, self._lease.turn
        if reconciles and turn != self._turn:
            self._next_listing = 0.0
        self._turn = turn
        facts = await self._read(reconciles)
        wanted = rules.judge(facts, self._grace, self._memory, self._busy)
        if reconciles:
            await self._act(wanted, facts)
        else:
            self._learn(wanted)
        for key in self._games:
            self._fleet.want(key)

    async def _act(self, wanted: list[acts.Act], facts: rules.Facts) -> None:
        kept, held = rules.brake(wanted, sum(map(deployments.is_live, facts.after.values())))
        if held:
            log.error("the sweep would end %d more servers than it may at once; it looks again first", held)
            self._metrics.brake.inc(held)
        for act in kept:
            if not self._lease.held or self._lease.turn != self._turn:
                # We were stopped, or NATS was away, for so long that others have gone on from here.
                log.warning("the rest of this sweep is left out: reconciling is another one's turn now")
                return
            try:
                await self._do(act)
            except TipoffError as exc:
                log.info("%s has to wait: %s", type(act).__name__, exc)

    def _learn(self, wanted: list[acts.Act]) -> None:
        """What concerns this process alone: where to send players."""
        for act in wanted:
            match act:
                case acts.Trust(deployment_id):
                    self._servers.trust(deployment_id)
                case acts.Confirm(deployment_id, _) | acts.End(deployment_id, _):
                    self._servers.distrust(deployment_id)
                case _:
                    pass

    def _busy(self, deployment_id: str) -> bool:
        return self._fleet.is_starting_here(deployment_id) or self._fleet.is_ending_here(deployment_id)

    # Reading.

    async def _read(self, reconciles: bool) -> rules.Facts:
        sessions: dict[str, Entry[SessionRecord]] | None = None
        connections: frozenset[str] | None = None
        departures: dict[str, int] = {}
        if (started := time.monotonic()) >= self._next_listing:
            latest = await self._stores.active_connections.list_latest()
            connections = frozenset(id for id, change in latest.items() if change.value is not None)
            departures = {id: change.revision for id, change in latest.items() if change.value is None}
            sessions = await self._stores.sessions.list()
            took = time.monotonic() - started
            self._next_listing = time.monotonic() + max(
                self._listing_interval * (1 if reconciles else _SELDOM), took * _LISTING_SHARE
            )
            for entry in sessions.values():
                self._on_session(entry.value)
            self._book.forget_all_but({id for id, entry in sessions.items() if is_open(entry.value)})
            self._metrics.sessions_seen(entry.value for entry in sessions.values())
        before = await self._deployments()
        leases = await self._stores.gameservers.list()
        self._servers.remember(leases)
        fleets = await self._stores.fleets.list()
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
        return rules.Facts(
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
        listed = await self._stores.deployments.list()
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
            log.info("orchestrator %s does not say what runs: %s", name, exc or type(exc).__name__)
            return None
        return {deployment.deployment_id: deployment for deployment in found}

    # Acting. Everything is checked again by the compare-and-set that does it.

    async def _do(self, act: acts.Act) -> None:
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
                    await self._fleet.note_place(deployment)
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
                    await self._stores.active_connections.forget(session_id, EVERYTHING)
            case acts.CheckSession(session_id):
                await self.check_session(session_id)
            case acts.FinishClosing(session):
                self._give_back.start(session)
            case acts.DropConnection(session_id):
                await self._stores.active_connections.forget(session_id, EVERYTHING)
            case acts.ForgetDeparture(session_id, revision):
                await self._stores.active_connections.forget(session_id, revision)

    async def check_session(self, session_id: str) -> None:
        """Before anything is closed for its deadline or its absence: is the player connected?"""
        latest = await self._stores.active_connections.latest(session_id)
        connected = latest is not None and latest.value is not None
        record = await self._book.read(session_id)
        if record is None:
            return
        if not connected and (latest is not None or record.state is SessionState.ACTIVE):
            await self._book.apply(session_id, Left())
        else:
            await self._book.apply(session_id, DeadlinePassed(connected))

    async def _follow(self, lease: GameserverLease) -> None:
        current = await self._stores.gameservers.get(lease.deployment_id)
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


def _values(entries: Mapping[str, Entry[T]]) -> dict[str, T]:
    return {key: entry.value for key, entry in entries.items()}
