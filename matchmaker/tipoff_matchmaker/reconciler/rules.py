"""What the sweep does, as pure rules: facts in, acts out.

The facts are read in this order: connections, sessions, all other records, then what the orchestrators list, then the
deployments again. "Unknown to us" is judged against the second reading, "gone" against the first, so that nothing is
judged by a fact older than itself. An expired lease or an absence from a list is a suspicion: the act is to ask
(`Confirm`). Acts that end something on less than certainty are `DRASTIC`, and `brake` lets only so many of them
through in one sweep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tipoff_matchmaker.deployments.machine import is_coming, is_live, to_retire
from tipoff_matchmaker.reconciler.actions import (
    DRASTIC,
    Act,
    Arrive,
    CheckSession,
    Confirm,
    DropConnection,
    End,
    FinishClosing,
    Follow,
    ForgetDeparture,
    FreeSeats,
    Happen,
    LookForDigest,
    NotePlace,
    Shrink,
    StopUnknown,
    Trust,
    Unreserve,
)
from tipoff_matchmaker.seats.rules import stale_seats
from tipoff_matchmaker.sessions.machine import Connected, DeadlinePassed, ServerGone
from tipoff_orchestrator_client.base import Deployment, RunState
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


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything one sweep has read. `listed[name]` is None where that orchestrator gave no answer; `sessions`
    and `connections` are None when they were not listed this time; `departures`: revisions of the tombstones of
    connections, as listed with these. `settled`: connected long enough that a missing
    lease or connection means something."""

    now: float
    settled: bool
    games: Mapping[GameKey, Game]
    before: Mapping[str, DeploymentRecord]
    after: Mapping[str, DeploymentRecord]
    leases: Mapping[str, GameserverLease]
    listed: Mapping[str, Mapping[str, Deployment] | None]
    fleets: Mapping[str, FleetRecord]
    sessions: Mapping[str, SessionRecord] | None = None
    connections: frozenset[str] | None = None
    departures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grace:
    """How long a suspicion must last, in seconds."""

    lease: float
    orphan: float
    slack: float


@dataclass(slots=True)
class Memory:
    """Since when something has looked wrong, sweep after sweep; forgotten as soon as it looks right once."""

    since: dict[str, float] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def lasting(self, what: str, now: float) -> float:
        """Seconds for which `what` has been wrong."""
        self._seen.add(what)
        return now - self.since.setdefault(what, now)

    def end_of_sweep(self, *, keep: Callable[[str], bool]) -> None:
        """Forget what was not wrong in this sweep, except what it did not look at (`keep`)."""
        self.since = {what: at for what, at in self.since.items() if what in self._seen or keep(what)}
        self._seen = set()


def judge(facts: Facts, grace: Grace, memory: Memory, busy: Callable[[str], bool]) -> list[Act]:
    """What is to be done. `busy(id)`: this process is starting or ending that deployment right now, and needs no
    reminder of its deadlines."""
    acts: list[Act] = []
    for record in facts.after.values():
        about = _deployment(record, facts, grace, memory)
        acts += _place(record, facts)
        acts += [act for act in about if not (isinstance(act, End) and busy(record.id))]
    for game in facts.games.values():
        fleet = [r for r in facts.after.values() if (r.game, r.version) == game.key]
        acts += [Shrink(r.id) for r in to_retire(game, fleet, facts.now)]
    forgotten = [r for r in facts.after.values() if (r.game, r.version) not in facts.games]
    acts += [Shrink(r.id) for r in to_retire(None, forgotten, facts.now)]
    acts += _unknown(facts, grace, memory)
    acts += _reservations(facts, grace)
    if facts.sessions is not None:
        acts += _sessions(facts, facts.sessions, grace, memory)
    memory.end_of_sweep(keep=lambda what: facts.sessions is None and what.startswith("session/"))
    return acts


def brake(acts: list[Act], servers: int) -> tuple[list[Act], int]:
    """The acts without those drastic ones that are more than max(3, 20 %) of the servers; and how many were held
    back. They come again in the next sweep, if they are still right then."""
    allowed = max(3, servers // 5)
    kept: list[Act] = []
    held = 0
    for act in acts:
        if isinstance(act, DRASTIC):
            if allowed == 0:
                held += 1
                continue
            allowed -= 1
        kept.append(act)
    return kept, held


def _deployment(record: DeploymentRecord, facts: Facts, grace: Grace, memory: Memory) -> list[Act]:
    now = facts.now
    lease = facts.leases.get(record.id)
    listed = facts.listed.get(record.orchestrator)
    running = None if listed is None else listed.get(record.id)
    if record.state is DeploymentState.GONE:
        return []
    if record.state is DeploymentState.STOPPING:
        return [End(record.id, record.reason)] if now > record.deadline else []
    if is_coming(record):
        if running is not None and lease is not None:
            return [Follow(lease)]
        if running is not None and running.state is RunState.RUNNING and _ready_when_running(record, facts):
            return [Arrive(running)]
        if now > record.deadline + grace.slack:
            return [End(record.id, "it was not ready in time")]
        if running is not None and running.state is RunState.RUNNING and _ready_by_context(record, facts):
            return [LookForDigest(running)] if running.digest_key else []
        if record.state is DeploymentState.STARTING and _missing(record, facts):
            return [Confirm(record.id, "its orchestrator does not list it")]
        return []
    # ready or draining
    if _missing(record, facts):
        return [Confirm(record.id, "its orchestrator does not list it")]
    acts: list[Act] = []
    if _has_lease(record, facts):
        if lease is None:
            lasting = memory.lasting(f"lease/{record.id}", now)
            if facts.settled and lasting > grace.lease:
                return [End(record.id, "it sends no heartbeat")]
            return [Confirm(record.id, "it has no lease")]
        if (
            lease.boot_id != record.boot_id
            or lease.transports != record.transports
            or lease.state is LeaseState.ENDED
            or (lease.state is LeaseState.DRAINING and record.state is DeploymentState.READY)
        ):
            return [Follow(lease)]
    if record.state is DeploymentState.DRAINING and not record.seats:
        return [End(record.id, record.reason)]
    if running is not None and record.state is DeploymentState.READY:
        acts.append(Trust(record.id))
    if facts.sessions is not None and (stale := stale_seats(record, facts.sessions, now, slack=grace.slack)):
        acts.append(FreeSeats(record.id, stale))
    return acts


def _place(record: DeploymentRecord, facts: Facts) -> list[Act]:
    running = (facts.listed.get(record.orchestrator) or {}).get(record.id)
    if running is None or record.state is DeploymentState.GONE:
        return []
    known = (running.proxy, running.digest_key) == (record.proxy, record.digest_key)
    return [] if known else [NotePlace(running)]


def _missing(record: DeploymentRecord, facts: Facts) -> bool:
    """It was there before the orchestrator listed what runs, and is not in that list."""
    listed = facts.listed.get(record.orchestrator)
    first = facts.before.get(record.id)
    return (
        listed is not None
        and record.id not in listed
        and first is not None
        and first.state not in (DeploymentState.PLANNED, DeploymentState.GONE)
    )


def _has_lease(record: DeploymentRecord, facts: Facts) -> bool:
    game = facts.games.get((record.game, record.version))
    return bool(record.boot_id) or game is None or game.ready == "lease"


def _ready_when_running(record: DeploymentRecord, facts: Facts) -> bool:
    game = facts.games.get((record.game, record.version))
    return game is not None and game.ready == "running"


def _ready_by_context(record: DeploymentRecord, facts: Facts) -> bool:
    game = facts.games.get((record.game, record.version))
    return game is not None and game.ready == "context"


def _unknown(facts: Facts, grace: Grace, memory: Memory) -> list[Act]:
    acts: list[Act] = []
    for name, listed in facts.listed.items():
        for deployment_id in listed or ():
            record = facts.after.get(deployment_id)
            if record is not None and is_live(record):
                continue
            if memory.lasting(f"unknown/{name}/{deployment_id}", facts.now) > grace.orphan:
                acts.append(StopUnknown(name, deployment_id))
    return acts


def _reservations(facts: Facts, grace: Grace) -> list[Act]:
    acts: list[Act] = []
    for fleet in facts.fleets.values():
        for deployment_id, at in fleet.deployments.items():
            record = facts.after.get(deployment_id)
            over = record is not None and not is_live(record)
            never = (
                record is None
                and deployment_id not in facts.before
                and facts.now > at + grace.orphan
                and not any(listed is None or deployment_id in listed for listed in facts.listed.values())
            )
            if over or never:
                acts.append(Unreserve(fleet.game, fleet.version, deployment_id))
    return acts


def _sessions(facts: Facts, sessions: Mapping[str, SessionRecord], grace: Grace, memory: Memory) -> list[Act]:
    acts: list[Act] = []
    now = facts.now
    connections = facts.connections if facts.connections is not None else frozenset()
    for session in sessions.values():
        match session.state:
            case SessionState.REQUESTED:
                if now > session.deadline + grace.slack:
                    acts.append(Happen(session.id, DeadlinePassed(connected=False)))
            case SessionState.READY | SessionState.ACTIVE:
                acts += _seated(session, facts, connections, grace, memory)
            case SessionState.CLOSING:
                acts.append(FinishClosing(session))
            case SessionState.GONE:
                pass
    for session_id in connections:
        known = sessions.get(session_id)
        if known is None or known.state in (SessionState.CLOSING, SessionState.GONE):
            if memory.lasting(f"session/{session_id}/connection", now) > grace.orphan:
                acts.append(DropConnection(session_id))
            else:
                acts.append(Happen(session_id, Connected()))
    for session_id, revision in facts.departures.items():
        known = sessions.get(session_id)
        seated = known is not None and known.state in (SessionState.READY, SessionState.ACTIVE)
        if not seated and memory.lasting(f"session/{session_id}/departure", now) > grace.orphan:
            acts.append(ForgetDeparture(session_id, revision))
    return acts


def _seated(
    session: SessionRecord, facts: Facts, connections: frozenset[str], grace: Grace, memory: Memory
) -> list[Act]:
    deployment = facts.after.get(session.deployment_id)
    # The session was read before the deployments were read again: one it names and that is not there has ended.
    if deployment is None or not is_live(deployment):
        return [Happen(session.id, ServerGone(session.deployment_id, "the server is gone"))]
    if session.boot_id and deployment.boot_id and deployment.boot_id != session.boot_id:
        event = ServerGone(deployment.id, "the server was restarted", living_boot=deployment.boot_id)
        return [Happen(session.id, event)]
    if session.id in facts.departures:  # it left, and whoever was told of it died with the news
        return [CheckSession(session.id)]
    if session.state is SessionState.READY:
        if session.id in connections or (facts.settled and facts.now > session.deadline + grace.slack):
            return [CheckSession(session.id)]
        return []
    missing = facts.connections is not None and session.id not in connections and facts.settled
    # Active, and its connection is not there: once may be a listing between two writes, twice is worth a look.
    if missing and memory.lasting(f"session/{session.id}/left", facts.now) > 0:
        return [CheckSession(session.id)]
    return []
