"""One matchmaker: its parts put together, started in order and stopped in order.

Any number of these may run on one NATS; they share requests by a queue group and everything else by compare-and-set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from nats.aio.msg import Msg

from tipoff_matchmaker.admin import Admin
from tipoff_matchmaker.allocators.ledger_allocator import SeatAllocator
from tipoff_matchmaker.allocators.router import Allocators
from tipoff_matchmaker.bevygap.contexts import Contexts
from tipoff_matchmaker.bevygap.delete_queue import DeleteQueue
from tipoff_matchmaker.deployments.fleet_limit import Reservations
from tipoff_matchmaker.deployments.store import Ledger
from tipoff_matchmaker.deployments.watch import watch_deployments
from tipoff_matchmaker.event_secret import EventSecret
from tipoff_matchmaker.fleet.liveness import Servers
from tipoff_matchmaker.fleet.planner import Fleet
from tipoff_matchmaker.isolated.reader import EventReader
from tipoff_matchmaker.isolated.writer import EventWriter
from tipoff_matchmaker.mappings import Mappings
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.orchestrators.resilient import Guarded
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.reaper import Reaper
from tipoff_matchmaker.reconciler.executor import Deeds
from tipoff_matchmaker.reconciler.lease import ReconcilerLease
from tipoff_matchmaker.reconciler.loop import Sweep
from tipoff_matchmaker.reconciler.rules import Grace
from tipoff_matchmaker.reconciler.snapshot import Readings
from tipoff_matchmaker.recreate_buckets import recreate_buckets
from tipoff_matchmaker.requests.gensession import GenSession, default_game
from tipoff_matchmaker.requests.pending import Stopping
from tipoff_matchmaker.requests.placement import Allocations
from tipoff_matchmaker.requests.plays import Plays
from tipoff_matchmaker.requests.subscription import QUEUE, Requests
from tipoff_matchmaker.sessions.deadlines import Deadlines
from tipoff_matchmaker.sessions.effects import SessionEffects
from tipoff_matchmaker.sessions.kicker import Kicks
from tipoff_matchmaker.sessions.release import GiveBack
from tipoff_matchmaker.sessions.store import SessionBook
from tipoff_matchmaker.settings import Settings
from tipoff_matchmaker.tokens import Tokens
from tipoff_orchestrator_client.base import Orchestrator
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_shared.games import Games
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import BoundedHandlers, Tasks

if TYPE_CHECKING:
    from tipoff_matchmaker.allocators.edgegap.wiring import AtEdgegap

log = logging.getLogger(__name__)

_WATCHING_ENDS = 1.0
"""How long requests asked again may still take when the process is told to stop: others have them, too."""


class Matchmaker:
    """A running matchmaker. Its parts are attributes for those who look inside: tests, status, metrics."""

    def __init__(
        self,
        settings: Settings,
        games: Games,
        bus: Bus,
        buckets: Buckets,
        orchestrators: Mapping[str, Orchestrator],
        tasks: Tasks,
        loops: Tasks,
        clock: Callable[[], float],
    ) -> None:
        self.settings = settings
        self.instance = settings.instance
        self.bus = bus
        self.buckets = buckets
        self.metrics = Metrics()
        self.failed = asyncio.Event()
        """Set when one of the loops that must run for ever has ended by a mistake: start a new process."""
        self.orchestrators = {
            name: Guarded(
                orchestrator,
                threshold=settings.breaker_failures,
                first_pause=settings.breaker_pause,
                on_change=self.metrics.breaker_changed,
                on_error=self.metrics.orchestrator_failed,
            )
            for name, orchestrator in orchestrators.items()
        }
        self._loops = loops
        by_key = {game.key: game for game in games.all()}

        self.ledger = Ledger(buckets.deployments, tasks)
        self.peers = Peers(bus, self.instance, silent_after=settings.owner_silence)
        self._tokens = Tokens(games, settings.gs_proxy_url)
        self._reservations = Reservations(buckets.fleets)
        self.event_secret = EventSecret(bus) if settings.profile == "isolated" else None
        self.servers = Servers(
            buckets, games, self.ledger, self._tokens, tasks, lambda: self.book, clock=clock
        )
        self.fleet = Fleet(
            self.ledger,
            self._reservations,
            self.orchestrators,
            [game for game in games.all() if game.orchestrator != SESSIONS],  # Edgegap starts those servers
            tasks,
            clock=clock,
            backoff=settings.backoff,
            deploy_tries=settings.deploy_tries,
            start_failures=settings.start_failures,
            tell_reasons=settings.tell_reasons,
            gs_proxy_url=settings.gs_proxy_url,
            end_sessions=self.servers.end_sessions,
            runs=self.servers.runs,
            trust=self.servers.trust,
            event_key=self._event_key,
        )
        self.allocator = SeatAllocator(
            self.ledger,
            self.fleet,
            tasks,
            clock=clock,
            trusted=self.servers.trusted,
            seat_hold=settings.seat_hold,
            progress_interval=settings.progress_interval,
        )
        self.servers.join(self.fleet, self.allocator.refresh)
        self.mappings = Mappings(buckets)
        self.contexts = Contexts(games, self.ledger, self.fleet, self.servers, buckets.cert_digests)
        self._kicks = Kicks(bus, self.ledger, tasks)
        self._at_edgegap: AtEdgegap | None = None
        if SESSIONS in orchestrators:
            from tipoff_matchmaker.allocators.edgegap.wiring import (
                AtEdgegap,
            )  # which needs httpx; nothing else here does

            self._at_edgegap = AtEdgegap(
                orchestrators[SESSIONS],
                bus,
                buckets,
                games,
                self.ledger,
                self.servers,
                self.contexts,
                tasks,
                settings,
                clock=clock,
            )
        self.allocators = Allocators(
            self.allocator, {} if self._at_edgegap is None else self._at_edgegap.allocators
        )
        self._give_back = GiveBack(bus, buckets, games, self.allocators, lambda: self.book, tasks)
        self._deadlines = Deadlines(clock, self._deadline)
        effects = SessionEffects(games, self._give_back, self._kicks, self._deadlines)
        self.book = SessionBook(
            buckets.sessions,
            clock=clock,
            gone_ttl=settings.gone_ttl,
            on_effect=effects.follow,
            on_write=effects.written,
        )
        self.reconciler_lease = ReconcilerLease(
            buckets.matchmakers, self.instance, ttl=settings.reconciler_ttl
        )
        self.readings = Readings(
            bus,
            buckets,
            by_key,
            self.ledger,
            self.servers,
            self.book,
            self.orchestrators,
            self.metrics,
            clock=clock,
            listing_interval=settings.listing_interval,
            settle=2 * settings.lease_ttl,
            on_session=effects.written,
        )
        self.deeds = Deeds(
            buckets,
            self.ledger,
            self._reservations,
            self.fleet,
            self.servers,
            self.book,
            self._give_back,
            self.orchestrators,
            clock=clock,
            look_for_digest=self.contexts.look_for_digest,
        )
        self.sweep = Sweep(
            self.readings,
            self.deeds,
            self.fleet,
            self.servers,
            self.reconciler_lease,
            by_key,
            self.metrics,
            interval=settings.sweep_interval,
            grace=Grace(settings.lease_grace, settings.orphan_grace, settings.claim_slack),
        )
        self._handlers = BoundedHandlers("play request", settings.max_requests)
        self._again = BoundedHandlers("play request asked again", settings.max_requests)
        allocations = Allocations(
            self.instance,
            buckets,
            self.ledger,
            self.allocators,
            self.book,
            self._tokens,
            self.peers,
            self.mappings,
            clock=clock,
            claim_slack=settings.claim_slack,
            backoff=settings.backoff,
        )
        self.plays = Plays(self.instance, allocations, self.book, tasks)
        self._requests = Requests(
            bus,
            games,
            self.plays,
            self._handlers,
            self._again,
            self.metrics,
            alone=lambda: self.peers.alone,
        )
        self._gensession = GenSession(
            bus, default_game(games, settings.default_game), self.plays, self._handlers
        )
        self._admin = Admin(
            bus,
            self.instance,
            self.book,
            self.ledger,
            self.fleet,
            self.servers,
            self._kicks,
            self.orchestrators,
            lambda: self._handlers.in_flight,
        )
        if self.event_secret is not None:
            writer = EventWriter(
                bus, buckets, self.ledger, self.contexts.received, longest_lease=3 * settings.lease_ttl
            )
            self._event_reader = EventReader(bus, writer, self.metrics, tasks, self.event_secret.key_of)
        self._reaper = Reaper(buckets, self.book, self.servers)
        self._delete_queue = DeleteQueue(bus, self.book, self._give_back)
        self.metrics.in_flight.set_function(lambda: self._handlers.in_flight)

    @property
    def in_flight(self) -> int:
        """Requests in hand."""
        return self._handlers.in_flight

    async def start(self) -> None:
        """Learn what is written down, compare it with what is, begin to follow it, then take requests."""
        await self.follow()
        self._loops.start(self._delete_queue.run(), "delete queue")
        subjects, nc = self.bus.subjects, self.bus.nc
        await nc.subscribe(subjects.contexts, queue=QUEUE, cb=self._context)
        await nc.subscribe(subjects.ping_matchmaker, queue=QUEUE, cb=self._ping)
        await self._requests.open()
        await self._gensession.open()
        await self._admin.open()
        await self.bus.flush()

    async def follow(self) -> None:
        """All that goes on without being asked."""
        start = self._loops.start
        if self.event_secret is not None:
            await self.event_secret.ensure()
        for entry in (await self.buckets.deployments.list()).values():
            self.ledger.observe(entry)
        self.servers.remember(await self.buckets.gameservers.list(), at_start=True)
        self.fleet.run(self.allocator.line, self._loops)
        await self.reconciler_lease.seek()
        await self.sweep.once()
        start(self.reconciler_lease.run(self.sweep.soon), "reconciler lease")
        self.bus.on_reconnect(self._nats_is_back)
        start(self.sweep.run(), "sweep")
        start(self._deadlines.run(), "deadlines")
        start(self.mappings.run(), "mappings")
        start(self._reaper.connections(), "connections")
        start(self._reaper.leases(), "leases")
        if self.event_secret is not None:
            start(self._event_reader.run(), "events")
        start(watch_deployments(self.buckets.deployments, self.ledger), "watch")
        if self._at_edgegap is not None:
            start(self._at_edgegap.run(), "edgegap sessions")
        for name, orchestrator in self.orchestrators.items():
            start(self.servers.follow(orchestrator), f"events of {name}")

    async def stop(self) -> None:
        """In this order: take no more; tell those without a server to ask elsewhere; finish what is in hand."""
        self._stopping = True
        await self.reconciler_lease.give_up()
        await self._requests.stop_taking()
        stopping = Stopping("this matchmaker is stopping, ask again", retry_after=1)
        self.allocator.close(stopping)
        if self._at_edgegap is not None:
            self._at_edgegap.close(stopping)
        await asyncio.gather(
            self._handlers.drain(self.settings.drain_timeout), self._again.drain(_WATCHING_ENDS)
        )
        await self.plays.settle(timeout=1)
        if self._at_edgegap is not None:
            await self._at_edgegap.settle(timeout=3)
        await self._gensession.stop()
        await self._admin.stop()
        await self.mappings.put_all_again()

    _stopping = False

    def _nats_is_back(self) -> None:
        self.reconciler_lease.soon()
        self.sweep.soon()
        self._loops.start(recreate_buckets(self.bus, self.event_secret), "stores")

    async def _ping(self, msg: Msg) -> None:
        if msg.reply and not self._stopping:
            await self.bus.publish(msg.reply, self.instance.encode())

    async def _context(self, msg: Msg) -> None:
        if not self._handlers.submit(lambda: self.contexts.received(msg.data)):
            log.warning("a gameserver's context is left to the sweep: too much in hand")

    def _event_key(self, deployment_id: str) -> str:
        """What a server of the isolated profile seals its events with; "" in the trusted profile."""
        return "" if self.event_secret is None else self.event_secret.key_of(deployment_id).reveal()

    async def _deadline(self, session_id: str) -> None:
        """A deadline we know of has passed."""
        if self.readings.settled:
            await self.deeds.check_session(session_id)
