"""Builds the parts of a matchmaker in the order in which they need each other; nothing else does.

No part looks another one up later: each gets what stands above it here. Where two parts need each other, the lower one
publishes what happens (`subscribe`), or both need a smaller third one (`Trust`, `WaitingLines`). No listener relies on
being called before or after another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tipoff_matchmaker.admin import Admin
from tipoff_matchmaker.allocators.interface import Allocator
from tipoff_matchmaker.allocators.room_filling import RoomFilling
from tipoff_matchmaker.allocators.router import Router
from tipoff_matchmaker.allocators.seat_allocator import SeatAllocator
from tipoff_matchmaker.bans import BanEnforcer
from tipoff_matchmaker.bevygap.contexts import BevygapContexts
from tipoff_matchmaker.bevygap.delete_queue import DeleteQueue
from tipoff_matchmaker.bucket_ages import BucketAges
from tipoff_matchmaker.deployments.fleet_limit import FleetLimit
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.event_secret import EventSecret
from tipoff_matchmaker.fleet.liveness import Liveness
from tipoff_matchmaker.fleet.planner import Planner
from tipoff_matchmaker.fleet.readiness import Readiness
from tipoff_matchmaker.fleet.start import Starter
from tipoff_matchmaker.fleet.stop import Stopper
from tipoff_matchmaker.fleet.trust import Trust
from tipoff_matchmaker.hearing import Hearing
from tipoff_matchmaker.isolated.auth_callout import AuthCallout
from tipoff_matchmaker.isolated.disconnector import Disconnector
from tipoff_matchmaker.isolated.probe import EventProbe
from tipoff_matchmaker.isolated.reader import EventReader
from tipoff_matchmaker.isolated.writer import EventWriter
from tipoff_matchmaker.mappings import Mappings
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.orchestrators.resilient import ResilientOrchestrator
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.playable import Playable
from tipoff_matchmaker.presence_reader import PresenceReader
from tipoff_matchmaker.reconciler.bucket_loss import BucketLoss
from tipoff_matchmaker.reconciler.executor import Executor
from tipoff_matchmaker.reconciler.lease import ReconcilerLease
from tipoff_matchmaker.reconciler.loop import Reconciler
from tipoff_matchmaker.reconciler.snapshot import SnapshotReader
from tipoff_matchmaker.requests.answers import Answers
from tipoff_matchmaker.requests.gensession import GenSession, default_game
from tipoff_matchmaker.requests.pending import PendingRequests
from tipoff_matchmaker.requests.placement import Placement
from tipoff_matchmaker.requests.resumption import Resumption
from tipoff_matchmaker.requests.subscription import RequestSubscription
from tipoff_matchmaker.seats.unclaimed import most_of
from tipoff_matchmaker.seats.waiting_line import WaitingLines
from tipoff_matchmaker.service_health import ServiceHealth
from tipoff_matchmaker.sessions.claim_limit import ClaimLimit
from tipoff_matchmaker.sessions.deadlines import SessionDeadlines
from tipoff_matchmaker.sessions.expected import ExpectedSeats
from tipoff_matchmaker.sessions.kicker import Kicker
from tipoff_matchmaker.sessions.release import Releaser
from tipoff_matchmaker.sessions.server_gone import SessionEnder
from tipoff_matchmaker.sessions.state_machine import Effect
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_matchmaker.tokens import Tokens
from tipoff_orchestrator_client.base import ServerDirectory
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_shared.ban_follower import BanFollower
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Games, SomeGames
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.kv.write_probe import WriteProbe
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.nkeys import AccountKey
from tipoff_shared.primitives.tasks import BoundedHandlers, Tasks

if TYPE_CHECKING:
    from tipoff_matchmaker.allocators.edgegap.allocator import EdgegapSessions


@dataclass(frozen=True)
class Parts:
    """What service.py starts and stops, and what tests look at. `None`: this matchmaker has no such part."""

    settings: Settings
    bus: Bus
    buckets: Buckets
    published: GamesFollower
    write_probe: WriteProbe
    tasks: Tasks
    metrics: Metrics
    orchestrators: Mapping[str, ResilientOrchestrator]
    event_secret: EventSecret | None
    peers: Peers
    mappings: Mappings
    deployments: DeploymentStore
    sessions: SessionStore
    lines: WaitingLines
    trust: Trust
    readiness: Readiness
    deadlines: SessionDeadlines
    ban_follower: BanFollower
    bans: BanEnforcer
    stopper: Stopper
    starter: Starter
    liveness: Liveness
    contexts: BevygapContexts
    planner: Planner
    health: ServiceHealth
    edgegap: EdgegapSessions | None
    router: Router
    event_reader: EventReader | None
    event_probe: EventProbe | None
    auth_callout: AuthCallout | None
    disconnector: Disconnector | None
    hearing: Hearing
    lease: ReconcilerLease
    reader: SnapshotReader
    executor: Executor
    reconciler: Reconciler
    presence_reader: PresenceReader
    delete_queue: DeleteQueue
    handlers: BoundedHandlers
    pending: PendingRequests
    resumption: Resumption
    requests: RequestSubscription
    gensession: GenSession
    admin: Admin


def compose(
    settings: Settings,
    games: Games,
    bus: Bus,
    buckets: Buckets,
    orchestrators: Mapping[str, ServerDirectory],
    tasks: Tasks,
    clock: Callable[[], float],
    account_key: AccountKey | None = None,
) -> Parts:
    """All parts of one matchmaker; none of them does anything yet. `clock`: Unix seconds; `account_key`: what signs the
    answers to nats-server about game servers (isolated profile). Raises `ConfigError` for a
    default game that games.toml does not have."""
    ours = games.only(lambda game: game.orchestrator != SESSIONS)  # Edgegap starts the servers of the others
    published = GamesFollower(buckets.games, games, Playable(settings, orchestrators).complaint)

    write_probe = WriteProbe(bus, buckets)
    metrics = Metrics()
    tokens = Tokens(games, settings.gs_proxy_url)
    peers = Peers(bus, settings.instance, silent_after=settings.owner_silence)
    mappings = Mappings(buckets)
    event_secret = EventSecret(bus) if settings.profile == "isolated" else None
    # Where nats-server asks us about servers that connect, none could while no matchmaker ran: each tries again, in
    # earlier releases after up to 20 s.
    settle = (2 if account_key is None else 4) * settings.lease_ttl
    hearing = Hearing(bus, settle=settle, by_stream=event_secret is not None)
    resilient = {
        name: ResilientOrchestrator(
            orchestrator,
            threshold=settings.breaker_failures,
            first_pause=settings.breaker_pause,
            on_change=metrics.breaker_changed,
            on_error=metrics.orchestrator_failed,
        )
        for name, orchestrator in orchestrators.items()
    }

    ages = BucketAges(bus, buckets, tasks, clock)
    deployments = DeploymentStore(buckets.deployments, tasks)
    fleet_limit = FleetLimit(buckets.fleets)
    sessions = SessionStore(buckets.sessions, settings, clock)

    trust = Trust(deployments)
    lines = WaitingLines(ours)
    kicker = Kicker(bus, ages, buckets, deployments, tasks)
    ender = SessionEnder(buckets, sessions)
    metrics.unheard.set_function(lambda: float(hearing.deaf))
    deadlines = SessionDeadlines(hearing, buckets, sessions, clock)

    sessions.subscribe_ends(metrics.session_ended)
    claims = ClaimLimit(
        sessions,
        functools.partial(most_of, games, settings.unclaimed_per_address),
        metrics,
        tasks,
        settings,
        clock,
    )
    ban_follower = BanFollower(buckets.bans, clock)
    bans = BanEnforcer(
        bus, ages, buckets, ban_follower, deployments, sessions, kicker, tasks, settings, clock
    )

    stopper = Stopper(deployments, fleet_limit, resilient, ender, tasks, settings, clock)
    readiness = Readiness(games, deployments, tokens, trust, ender, stopper, clock)
    starter = Starter(
        deployments,
        resilient,
        ours,
        lines,
        readiness,
        event_secret,
        hearing,
        published,
        tasks,
        settings,
        clock,
    )
    liveness = Liveness(
        buckets.gameservers, games, deployments, resilient, trust, readiness, starter, stopper, hearing, tasks
    )
    contexts = BevygapContexts(games, deployments, resilient, readiness, stopper, buckets.cert_digests)
    planner = Planner(
        deployments,
        fleet_limit,
        resilient,
        ours,
        lines,
        claims,
        starter,
        stopper,
        liveness,
        peers,
        settings,
        clock,
    )
    health = ServiceHealth(write_probe, resilient, planner, ours, games, peers, ban_follower, published)

    rooms = RoomFilling(deployments, sessions, trust, peers, tokens, ours, tasks, settings, clock)
    usual = SeatAllocator(deployments, trust, lines, planner, claims, rooms, tasks, settings, clock)
    others: dict[str, Allocator] = {}
    edgegap: EdgegapSessions | None = None
    if (servers := orchestrators.get(SESSIONS)) is not None:
        theirs = games.only(lambda game: game.orchestrator == SESSIONS)
        edgegap = _edgegap_sessions(
            servers, theirs, bus, buckets, deployments, readiness, contexts, claims, tasks, settings, clock
        )
        others[SESSIONS] = edgegap
    router = Router(usual, games, others)
    releaser = Releaser(bus, buckets, games, sessions, router, tasks)
    sessions.handle(
        {Effect.RELEASE: releaser.start, Effect.KICK: kicker.start, Effect.CLAIMED: releaser.claimed}
    )

    event_reader: EventReader | None = None
    event_probe: EventProbe | None = None
    auth_callout: AuthCallout | None = None
    disconnector: Disconnector | None = None
    lease = ReconcilerLease(buckets.matchmakers, settings.instance, ttl=settings.reconciler_ttl)
    if event_secret is not None:
        writer = EventWriter(
            bus, ages, buckets, deployments, contexts.received, longest_lease=3 * settings.lease_ttl
        )
        event_reader = EventReader(bus, writer, deployments, metrics, tasks, event_secret.key_of)
        event_probe = EventProbe(
            bus, hearing, settings.instance, event_secret.key_of, lease_ttl=settings.lease_ttl
        )
        if account_key is not None:
            auth_callout = AuthCallout(bus, account_key, ages, deployments, event_secret.password_of)
            disconnector = Disconnector(
                bus, ages, deployments, lambda: lease.held, interval=settings.listing_interval
            )

    BucketLoss(bus, ages, deployments, sessions, liveness, hearing, tasks)
    reader = SnapshotReader(
        ages,
        buckets,
        games,
        deployments,
        resilient,
        trust,
        liveness,
        sessions,
        deadlines,
        hearing,
        metrics,
        settings,
        clock,
    )
    executor = Executor(
        buckets,
        games,
        deployments,
        fleet_limit,
        resilient,
        trust,
        liveness,
        readiness,
        contexts,
        stopper,
        sessions,
        deadlines,
        ender,
        releaser,
        kicker,
        clock,
    )
    reconciler = Reconciler(reader, executor, lease, trust, starter, stopper, planner, metrics, settings)
    presence_reader = PresenceReader(buckets, sessions, liveness)
    delete_queue = DeleteQueue(bus, sessions, releaser)

    expected = ExpectedSeats(bus, clock)
    answers = Answers(ages, buckets, deployments, claims, expected, tokens, mappings, settings, clock)
    placement = Placement(buckets, router, sessions, bans, tokens, answers, peers, settings, clock)
    resumption = Resumption(sessions, bans, tokens, answers)
    pending = PendingRequests(placement.place, sessions, tasks, settings)
    handlers = BoundedHandlers("play request", settings.max_requests)
    metrics.in_flight.set_function(lambda: handlers.in_flight)
    requests = RequestSubscription(bus, games, pending, resumption, handlers, peers, metrics, settings)
    default = functools.partial(default_game, games, settings.default_game)
    default()
    gensession = GenSession(bus, default, pending, handlers)
    admin = Admin(
        bus,
        settings.instance,
        sessions,
        deployments,
        trust,
        stopper,
        planner,
        kicker,
        resilient,
        games,
        handlers,
        health,
        claims,
        bans,
        published,
        clock,
    )
    return Parts(
        settings=settings,
        bus=bus,
        buckets=buckets,
        published=published,
        write_probe=write_probe,
        tasks=tasks,
        metrics=metrics,
        orchestrators=resilient,
        event_secret=event_secret,
        peers=peers,
        mappings=mappings,
        deployments=deployments,
        sessions=sessions,
        lines=lines,
        trust=trust,
        readiness=readiness,
        deadlines=deadlines,
        ban_follower=ban_follower,
        bans=bans,
        stopper=stopper,
        starter=starter,
        liveness=liveness,
        contexts=contexts,
        planner=planner,
        health=health,
        edgegap=edgegap,
        router=router,
        event_reader=event_reader,
        event_probe=event_probe,
        auth_callout=auth_callout,
        disconnector=disconnector,
        hearing=hearing,
        lease=lease,
        reader=reader,
        executor=executor,
        reconciler=reconciler,
        presence_reader=presence_reader,
        delete_queue=delete_queue,
        handlers=handlers,
        pending=pending,
        resumption=resumption,
        requests=requests,
        gensession=gensession,
        admin=admin,
    )


def _edgegap_sessions(
    servers: ServerDirectory,
    games: SomeGames,
    bus: Bus,
    buckets: Buckets,
    deployments: DeploymentStore,
    readiness: Readiness,
    contexts: BevygapContexts,
    claims: ClaimLimit,
    tasks: Tasks,
    settings: Settings,
    clock: Callable[[], float],
) -> EdgegapSessions:
    """The allocator of the games whose seats Edgegap counts."""
    # Imported here, because they need httpx, which matchmakers without such games do without.
    from tipoff_matchmaker.allocators.edgegap.allocator import EdgegapSessions
    from tipoff_matchmaker.allocators.edgegap.seat_store import SeatStore
    from tipoff_matchmaker.allocators.edgegap.server_readiness import ServerReadiness
    from tipoff_matchmaker.allocators.edgegap.session_requests import SessionRequests
    from tipoff_matchmaker.allocators.edgegap.session_watch import SessionWatch
    from tipoff_orchestrator_client.edgegap.poller.poll_loop import PollLoop
    from tipoff_orchestrator_client.edgegap.session_servers import SessionServers

    if not isinstance(servers, SessionServers):
        raise ConfigError(
            f"orchestrator {SESSIONS!r} is built in; a {type(servers).__name__} cannot replace it"
        )
    client, edgegap = servers.client, servers.settings
    watch = SessionWatch(client, PollLoop(bus, edgegap, "session"))
    seats = SeatStore(client, buckets.edgegap_sessions)
    requests = SessionRequests(
        client, edgegap, bus.settings.namespace, watch, seats, tasks, backoff=settings.backoff
    )
    ready = ServerReadiness(
        servers,
        deployments,
        buckets.gameservers,
        readiness,
        contexts,
        tasks,
        clock=clock,
        backoff=settings.backoff,
    )
    return EdgegapSessions(
        watch, seats, requests, ready, claims, deployments, games, tasks, settings, clock=clock
    )
