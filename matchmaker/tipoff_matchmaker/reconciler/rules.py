"""Decides what the reconciler does, as pure rules: a snapshot in, actions out.

The snapshot is read in this order: connections, sessions, all other records, then what the orchestrators list, then the
deployments again. "Unknown to us" is judged against the second reading, "gone" against the first, so that nothing is
judged by a fact older than itself. An expired lease or an absence from a list is a suspicion: the action is to ask
(`Confirm`). Actions that stop a server without certainty are `DESTRUCTIVE`, and `brake` lets only so many of them
through in one cycle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tipoff_matchmaker.deployments.state_machine import is_coming, is_live, placed, to_retire
from tipoff_matchmaker.reconciler.actions import (
    DESTRUCTIVE,
    Action,
    ApplyEvent,
    CheckSession,
    CloseRecord,
    Confirm,
    DropConnection,
    FollowLease,
    ForgetDeparture,
    FreeSeats,
    KickFrom,
    LookForDigest,
    MarkReady,
    RebuildDeployment,
    RebuildSession,
    RecordPlace,
    ReleaseSession,
    Reserve,
    StopIfEmpty,
    StopServer,
    StopUnknown,
    Trust,
    Unreserve,
)
from tipoff_matchmaker.seats.rules import holds_seat, stale_seats
from tipoff_matchmaker.sessions.state_machine import Connected, DeadlinePassed, SeatFound, ServerGone
from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_shared.games import Game, GameKey
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    FleetRecord,
    GameserverLease,
    LeaseState,
    SessionRecord,
    SessionState,
)
from tipoff_shared.session_end import NO_HEARTBEAT

_CLOCKS_DIFFER = 10.0
"""Seconds by which a server may seem younger than a bucket that it is older than."""
_REBUILT_SEAT = 60.0
"""Seconds for which a rebuilt seat counts without a session record."""


@dataclass(frozen=True, slots=True)
class Connection:
    """An entry of `active_connections`. `server`: the deployment that wrote it, "" where it did not say (bevygap's)."""

    client_id: str
    server: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one cycle has read. `now`: Unix seconds. `settled`: game servers have been heard for so long that
    a missing lease or connection means something. `deaf`: they were not lately, although NATS was there, so that even a
    start may have ended well without our knowing. `before`, `after`: the two readings of the deployments.
    `listed[name]` is None where that orchestrator gave no answer. `sessions` and `connections` are None when they were
    not listed in this cycle; `departures`: revisions of the tombstones of connections, listed with these. `lost`: the
    buckets that NATS has lost lately -> when they were made anew; records missing there mean nothing."""

    now: float
    settled: bool
    games: Mapping[GameKey, Game]
    before: Mapping[str, DeploymentRecord]
    after: Mapping[str, DeploymentRecord]
    leases: Mapping[str, GameserverLease]
    listed: Mapping[str, Mapping[str, Deployment] | None]
    fleets: Mapping[str, FleetRecord]
    sessions: Mapping[str, SessionRecord] | None = None
    connections: Mapping[str, Connection] | None = None
    departures: Mapping[str, int] = field(default_factory=dict)
    deaf: bool = False
    lost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grace:
    """How long a suspicion must last, in seconds."""

    lease: float
    orphan: float
    slack: float


@dataclass(slots=True)
class Memory:
    """Since when something has looked wrong, cycle after cycle; forgotten as soon as it looks right once."""

    since: dict[str, float] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def lasting(self, what: str, now: float) -> float:
        """Seconds for which `what` has been wrong."""
        self._seen.add(what)
        return now - self.since.setdefault(what, now)

    def due(self, what: str, now: float, every: float) -> bool:
        """Whether `what` is to be done now: at first sight, and again `every` seconds after the last time."""
        self._seen.add(what)
        if (last := self.since.get(what)) is not None and now - last < every:
            return False
        self.since[what] = now
        return True

    def end_of_cycle(self, *, keep: Callable[[str], bool]) -> None:
        """Forget what was not wrong in this cycle, except what it did not look at (`keep`)."""
        self.since = {what: at for what, at in self.since.items() if what in self._seen or keep(what)}
        self._seen = set()


def judge(snapshot: Snapshot, grace: Grace, memory: Memory, busy: Callable[[str], bool]) -> list[Action]:
    """The actions that repair what differs. `busy(id)`: this process starts or stops that deployment right now, so it
    keeps the deadlines itself."""
    actions: list[Action] = []
    for record in snapshot.after.values():
        about = _deployment(record, snapshot, grace, memory)
        actions += _place(record, snapshot)
        actions += [action for action in about if not (isinstance(action, StopServer) and busy(record.id))]
    for game in snapshot.games.values():
        fleet = [r for r in snapshot.after.values() if (r.game, r.version) == game.key]
        actions += [StopIfEmpty(r.id) for r in to_retire(game, fleet, snapshot.now)]
    forgotten = [r for r in snapshot.after.values() if (r.game, r.version) not in snapshot.games]
    actions += [StopIfEmpty(r.id) for r in to_retire(None, forgotten, snapshot.now)]
    actions += _unknown(snapshot, grace, memory)
    actions += _reservations(snapshot, grace)
    if snapshot.sessions is not None:
        actions += _sessions(snapshot, snapshot.sessions, grace, memory)
    memory.end_of_cycle(keep=lambda what: snapshot.sessions is None and what.startswith("session/"))
    return actions


def brake(actions: list[Action], servers: int) -> tuple[list[Action], int]:
    """Returns the actions without those destructive ones that are more than max(3, 20 %) of the `servers`, and how many
    were held back. They come again in the next cycle, if they are still right then."""
    allowed = max(3, servers // 5)
    kept: list[Action] = []
    held = 0
    for action in actions:
        if isinstance(action, DESTRUCTIVE):
            if allowed == 0:
                held += 1
                continue
            allowed -= 1
        kept.append(action)
    return kept, held


def _deployment(record: DeploymentRecord, snapshot: Snapshot, grace: Grace, memory: Memory) -> list[Action]:
    now = snapshot.now
    lease = snapshot.leases.get(record.id)
    listed = snapshot.listed.get(record.orchestrator)
    running = None if listed is None else listed.get(record.id)
    if record.state is DeploymentState.GONE:
        return []
    if _is_from_the_past(record, snapshot):
        return [CloseRecord(record)]
    if record.state is DeploymentState.STOPPING:
        return [StopServer(record.id, record.reason)] if now > record.deadline else []
    if is_coming(record):
        if running is not None and lease is not None:
            return [FollowLease(lease)]
        if (
            running is not None
            and running.state is RunState.RUNNING
            and _ready_when_running(record, snapshot)
        ):
            return [MarkReady(running)]
        if now > record.deadline + grace.slack and not snapshot.deaf:
            return [StopServer(record.id, "it was not ready in time")]
        if running is not None and running.state is RunState.RUNNING and _ready_by_context(record, snapshot):
            return [LookForDigest(running)] if running.digest_key else []
        if record.state is DeploymentState.STARTING and _missing(record, snapshot):
            return [Confirm(record.id, "its orchestrator does not list it")]
        return []
    # ready or draining
    if _missing(record, snapshot):
        return [Confirm(record.id, "its orchestrator does not list it")]
    actions: list[Action] = []
    if _has_lease(record, snapshot):
        if lease is None:
            lasting = memory.lasting(f"lease/{record.id}", now)
            if snapshot.settled and lasting > grace.lease:
                return [StopServer(record.id, NO_HEARTBEAT)]
            return [Confirm(record.id, "it has no lease")]
        if (
            lease.boot_id != record.boot_id
            or lease.transports != record.transports
            or lease.locked != record.locked
            or lease.state is LeaseState.ENDED
            or (lease.state is LeaseState.DRAINING and record.state is DeploymentState.READY)
        ):
            return [FollowLease(lease)]
    if record.state is DeploymentState.DRAINING and not record.seats:
        return [StopServer(record.id, record.reason)]
    if running is not None and record.state is DeploymentState.READY:
        actions.append(Trust(record.id))
    if _still_lost("sessions", snapshot, grace):
        return actions
    if snapshot.sessions is not None and (
        stale := stale_seats(record, snapshot.sessions, now, slack=grace.slack)
    ):
        actions.append(FreeSeats(record.id, stale))
    return actions


def _place(record: DeploymentRecord, snapshot: Snapshot) -> list[Action]:
    running = (snapshot.listed.get(record.orchestrator) or {}).get(record.id)
    if running is None or record.state is DeploymentState.GONE:
        return []
    return [] if placed(record, running) is record else [RecordPlace(running)]


def _missing(record: DeploymentRecord, snapshot: Snapshot) -> bool:
    """Whether it was there before the orchestrator listed what runs, and is not in that list."""
    listed = snapshot.listed.get(record.orchestrator)
    first = snapshot.before.get(record.id)
    return (
        listed is not None
        and record.id not in listed
        and first is not None
        and first.state not in (DeploymentState.PLANNED, DeploymentState.GONE)
    )


def _is_from_the_past(record: DeploymentRecord, snapshot: Snapshot) -> bool:
    """Whether the record of a server that has ended is there again, as after a kill of nats-server: its orchestrator
    does not list it, and it has no reservation, which a server has from before its record until after its end. Those
    of Edgegap's sessions have none."""
    listed = snapshot.listed.get(record.orchestrator)
    return (
        record.orchestrator != SESSIONS
        and (record.game, record.version) in snapshot.games
        and listed is not None
        and record.id not in listed
        and snapshot.before.get(record.id) == record
        and not snapshot.lost.keys() & {"deployments", "fleets"}
        and not any(record.id in fleet.deployments for fleet in snapshot.fleets.values())
    )


def _has_lease(record: DeploymentRecord, snapshot: Snapshot) -> bool:
    game = snapshot.games.get((record.game, record.version))
    return bool(record.boot_id) or game is None or game.ready == "lease"


def _ready_when_running(record: DeploymentRecord, snapshot: Snapshot) -> bool:
    game = snapshot.games.get((record.game, record.version))
    return game is not None and game.ready == "running"


def _ready_by_context(record: DeploymentRecord, snapshot: Snapshot) -> bool:
    game = snapshot.games.get((record.game, record.version))
    return game is not None and game.ready == "context"


def _unknown(snapshot: Snapshot, grace: Grace, memory: Memory) -> list[Action]:
    actions: list[Action] = []
    for name, listed in snapshot.listed.items():
        for deployment_id in listed or ():
            record = snapshot.after.get(deployment_id)
            if record is not None and is_live(record):
                continue
            if record is None and _lost_its_record(deployment_id, name, snapshot):
                actions += _rebuilt(deployment_id, name, snapshot)
                continue
            lasting = memory.lasting(f"unknown/{name}/{deployment_id}", snapshot.now)
            # Before all servers had the time to write their leases, none tells whether records were lost.
            if lasting > grace.orphan and snapshot.settled:
                actions.append(StopUnknown(name, deployment_id))
    return actions


def _lost_its_record(deployment_id: str, orchestrator: str, snapshot: Snapshot) -> bool:
    """Whether a server without a record runs since before the bucket of the records was made anew."""
    made_anew = snapshot.lost.get("deployments")
    listed = (snapshot.listed.get(orchestrator) or {}).get(deployment_id)
    if made_anew is None or listed is None or deployment_id in snapshot.before:
        return False
    if (listed.game, listed.version) not in snapshot.games or listed.state is RunState.STOPPED:
        return False
    lease = snapshot.leases.get(deployment_id)
    if lease is not None:
        return lease.started_at < made_anew + _CLOCKS_DIFFER  # 0 from an earlier release
    return any(
        0 < fleet.deployments.get(deployment_id, 0.0) < made_anew for fleet in snapshot.fleets.values()
    )


def _rebuilt(deployment_id: str, orchestrator: str, snapshot: Snapshot) -> list[Action]:
    if snapshot.sessions is None or snapshot.connections is None:
        return []  # who sits there is known in the next cycle that lists sessions
    until = snapshot.now + _REBUILT_SEAT
    seats = [s.id for s in snapshot.sessions.values() if holds_seat(s, deployment_id)]
    seats += [id for id, connection in snapshot.connections.items() if connection.server == deployment_id]
    listed = (snapshot.listed.get(orchestrator) or {})[deployment_id]
    lease = snapshot.leases.get(deployment_id)
    return [RebuildDeployment(orchestrator, listed, dict.fromkeys(seats, until), lease)]


def _still_lost(bucket: str, snapshot: Snapshot, grace: Grace) -> bool:
    """Whether the bucket was made anew so lately that not all of it is rebuilt."""
    made_anew = snapshot.lost.get(bucket)
    return made_anew is not None and snapshot.now - made_anew < grace.orphan


def _reservations(snapshot: Snapshot, grace: Grace) -> list[Action]:
    actions: list[Action] = []
    if "fleets" in snapshot.lost:
        reserved = {id for fleet in snapshot.fleets.values() for id in fleet.deployments}
        actions += [
            Reserve(record.game, record.version, record.id)
            for record in snapshot.after.values()
            if is_live(record) and record.id not in reserved and record.id in snapshot.before
        ]
    for fleet in snapshot.fleets.values():
        for deployment_id, at in fleet.deployments.items():
            record = snapshot.after.get(deployment_id)
            over = record is not None and not is_live(record)
            never = (
                record is None
                and deployment_id not in snapshot.before
                and snapshot.now > at + grace.orphan
                and not any(listed is None or deployment_id in listed for listed in snapshot.listed.values())
            )
            if over or never:
                actions.append(Unreserve(fleet.game, fleet.version, deployment_id))
    return actions


def _sessions(
    snapshot: Snapshot, sessions: Mapping[str, SessionRecord], grace: Grace, memory: Memory
) -> list[Action]:
    actions: list[Action] = []
    now = snapshot.now
    connections = snapshot.connections if snapshot.connections is not None else {}
    for session in sessions.values():
        match session.state:
            case SessionState.REQUESTED:
                if session.id in connections and "sessions" in snapshot.lost:
                    actions += _seat_again(session, connections[session.id], snapshot)
                elif now > session.deadline + grace.slack:
                    actions.append(ApplyEvent(session.id, DeadlinePassed(connected=False)))
            case SessionState.READY | SessionState.ACTIVE:
                actions += _seated(session, snapshot, connections, grace, memory)
            case SessionState.CLOSING:
                actions.append(ReleaseSession(session))
            case SessionState.GONE:
                pass
    for session_id, connection in connections.items():
        known = sessions.get(session_id)
        if known is None and "sessions" in snapshot.lost:
            actions += _rebuilt_session(session_id, connection, snapshot)
            continue
        if known is None or known.state in (SessionState.CLOSING, SessionState.GONE):
            actions += _past_connection(session_id, connection, known, snapshot, grace, memory)
    for session_id, revision in snapshot.departures.items():
        known = sessions.get(session_id)
        seated = known is not None and known.state in (SessionState.READY, SessionState.ACTIVE)
        if not seated and memory.lasting(f"session/{session_id}/departure", now) > grace.orphan:
            actions.append(ForgetDeparture(session_id, revision))
    return actions


def _past_connection(
    session_id: str,
    connection: Connection,
    known: SessionRecord | None,
    snapshot: Snapshot,
    grace: Grace,
    memory: Memory,
) -> list[Action]:
    """A connection whose session is over. Its server is told to end it, and again while it is there, but not in every
    cycle: after a kill of nats-server there may be thousands. One that nobody ends is dropped."""
    server = snapshot.after.get(connection.server)
    if known is None and connection.server and server is None and not snapshot.settled:
        return []  # its server may have lost its record, and says so by a lease older than the buckets
    nobody = (
        bool(connection.server)
        and (server is None or not is_live(server))
        and "deployments" not in snapshot.lost
    )
    lasting = memory.lasting(f"session/{session_id}/connection", snapshot.now)
    if lasting > (0 if nobody else grace.orphan):
        return [DropConnection(session_id)]
    if nobody or not memory.due(f"session/{session_id}/kick", snapshot.now, grace.orphan / 2):
        return []
    if known is None and server is not None:
        return [KickFrom(session_id, server.id)]
    return [ApplyEvent(session_id, Connected())]


def _rebuilt_session(session_id: str, connection: Connection, snapshot: Snapshot) -> list[Action]:
    """A connected player without a session: on a server from before the loss, the session was lost. Where nobody says
    which server it is, nobody is disturbed."""
    seated = [record.id for record in snapshot.after.values() if session_id in record.seats]
    server = snapshot.after.get(connection.server or next(iter(seated), ""))
    if server is None:
        return []
    if not is_live(server) or server.created_at > snapshot.lost["sessions"] + _CLOCKS_DIFFER:
        return [ApplyEvent(session_id, Connected())]
    until = snapshot.now + _REBUILT_SEAT
    return [RebuildSession(session_id, connection.client_id, server.id, until)]


def _seat_again(session: SessionRecord, connection: Connection, snapshot: Snapshot) -> list[Action]:
    """A connected player whose session still looks for a seat: the record has gone back to a time before it had one."""
    server = snapshot.after.get(connection.server)
    if server is None or not is_live(server):
        return []
    return [
        ApplyEvent(session.id, SeatFound(server.id, server.boot_id, snapshot.now + _REBUILT_SEAT)),
        ApplyEvent(session.id, Connected()),
    ]


def _seated(
    session: SessionRecord,
    snapshot: Snapshot,
    connections: Mapping[str, Connection],
    grace: Grace,
    memory: Memory,
) -> list[Action]:
    deployment = snapshot.after.get(session.deployment_id)
    # The session was read before the deployments were read again: if it names one that is missing, that one has ended.
    if deployment is None and "deployments" in snapshot.lost:
        runs = any(listed and session.deployment_id in listed for listed in snapshot.listed.values())
        if runs or _still_lost("deployments", snapshot, grace):
            return []
    if deployment is None or not is_live(deployment):
        return [ApplyEvent(session.id, ServerGone(session.deployment_id, "the server is gone"))]
    if session.boot_id and deployment.boot_id and deployment.boot_id != session.boot_id:
        event = ServerGone(deployment.id, "the server was restarted", living_boot=deployment.boot_id)
        return [ApplyEvent(session.id, event)]
    if (
        "deployments" in snapshot.lost
        and session.state is SessionState.ACTIVE
        and session.id in connections
        and session.id not in deployment.seats
    ):  # the record has gone back to a time before it sat there
        until = snapshot.now + _REBUILT_SEAT
        return [RebuildSession(session.id, session.client_id, deployment.id, until)]
    if session.id in snapshot.departures:  # it left, and the matchmaker that read so died before it acted
        return [CheckSession(session.id)]
    if session.state is SessionState.READY:
        if session.id in connections or (snapshot.settled and snapshot.now > session.deadline + grace.slack):
            return [CheckSession(session.id)]
        return []
    missing = snapshot.connections is not None and session.id not in connections and snapshot.settled
    # Active without a connection: once may be a listing between two writes, twice is worth a check.
    if missing and memory.lasting(f"session/{session.id}/left", snapshot.now) > 0:
        return [CheckSession(session.id)]
    return []
