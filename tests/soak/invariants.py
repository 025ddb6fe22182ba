"""What must always be true, as pure rules over one look at the records, the processes and the players.

A look is not one moment: records change while they are read. So a rule that is broken counts only when the same thing
stays broken, `Standing` says how long, and each rule has its bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from tipoff_shared.games import GameKey
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    FleetRecord,
    SessionRecord,
    SessionState,
)

SETTLED = 60.0
"""Seconds for which a rule may be broken after the latest fault: two lease TTLs before silence means anything, an
orphan's grace, and the reconciler's rounds."""
AT_ONCE = 5.0
"""The same for what no fault excuses: a few looks, from the first one on that shows it."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. `at` is Unix time. Records that are gone are left out.

    `connections`: sessions that game servers report as connected. `servers`: deployment ids of the processes that run.
    `players`: session -> deployment of the players who are connected, as they know it themselves. `vanished`: sessions
    of players who stopped to send so recently that their servers cannot know it yet.
    `limits`: `max_deployments` of each game. `missing`: why `/readyz` is not 200, "" if it is.
    """

    at: float
    sessions: Mapping[str, SessionRecord] = field(default_factory=dict)
    deployments: Mapping[str, DeploymentRecord] = field(default_factory=dict)
    fleets: Sequence[FleetRecord] = ()
    leases: AbstractSet[str] = frozenset()
    connections: AbstractSet[str] = frozenset()
    servers: AbstractSet[str] = frozenset()
    players: Mapping[str, str] = field(default_factory=dict)
    vanished: AbstractSet[str] = frozenset()
    limits: Mapping[GameKey, int] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One broken rule: what is wrong, with what."""

    rule: str
    subject: str


OVER_LIMIT = "a game has more servers than max_deployments"


def findings(look: Look) -> set[Finding]:
    """Every rule that is broken in this look."""
    found = {("/readyz is not 200", look.missing)} if look.missing else set()
    found |= _seats(look) | _players(look) | _servers(look) | _fleets(look)
    return {Finding(rule, subject) for rule, subject in found}


def _is_over(finding: Finding, now: float, since: float, calm_since: float) -> bool:
    if finding.rule == OVER_LIMIT:
        return now - since > AT_ONCE
    return now - max(since, calm_since) > SETTLED


def _seats(look: Look) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for server in look.deployments.values():
        found |= {("a seat without a session", seat) for seat in server.seats if seat not in look.sessions}
    for session in look.sessions.values():
        server_of = look.deployments.get(session.deployment_id)
        if session.state in (SessionState.READY, SessionState.ACTIVE) and (
            server_of is None or session.id not in server_of.seats
        ):
            found.add(("a session without a seat", session.id))
        if session.state is SessionState.CLOSING:
            found.add(("a session that does not end", session.id))
        if 0 < session.deadline < look.at:
            found.add((f"a session past its deadline in {session.state.value}", session.id))
    return found


def _players(look: Look) -> set[tuple[str, str]]:
    known = look.players.keys() | look.vanished
    found = {
        ("an active session without a player", session.id)
        for session in look.sessions.values()
        if session.state is SessionState.ACTIVE and session.id not in known
    }
    for session_id, deployment_id in look.players.items():
        if deployment_id not in look.servers:
            continue  # the server is dead, and its player has not noticed yet
        record = look.sessions.get(session_id)
        if record is None or record.state is not SessionState.ACTIVE:
            found.add(("a player without an active session", session_id))
        if session_id not in look.connections:
            found.add(("a player whom no game server reports", session_id))
    return found | {("a reported player who is not there", key) for key in look.connections - known}


def _servers(look: Look) -> set[tuple[str, str]]:
    found = {("a server without a record", key) for key in look.servers - set(look.deployments)}
    for record in look.deployments.values():
        if record.state in (DeploymentState.READY, DeploymentState.DRAINING):
            if record.id not in look.servers:
                found.add(("a record without a server", record.id))
            if record.id not in look.leases:
                found.add(("a ready server without a lease", record.id))
        elif record.state is DeploymentState.STOPPING:
            found.add(("a server that does not end", record.id))
    found |= {("a lease without a server", key) for key in look.leases - look.servers}
    return found


def _fleets(look: Look) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    reserved = {key for fleet in look.fleets for key in fleet.deployments}
    found |= {("a reservation without a record", key) for key in reserved - set(look.deployments)}
    found |= {("a record without a reservation", key) for key in set(look.deployments) - reserved}
    for (game, version), limit in look.limits.items():
        recorded = sum((r.game, r.version) == (game, version) for r in look.deployments.values())
        planned = sum(
            len(fleet.deployments) for fleet in look.fleets if (fleet.game, fleet.version) == (game, version)
        )
        if max(recorded, planned) > limit:
            found.add((OVER_LIMIT, f"{game} {version}: {max(recorded, planned)} of {limit}"))
    return found


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """A rule that stayed broken for longer than its bound: since when and for how long, in seconds."""

    rule: str
    subject: str
    since: float
    lasted: float


class Standing:
    """Remembers since when each finding stands, and reports each one once when its bound is over."""

    def __init__(self) -> None:
        self._since: dict[Finding, float] = {}
        self._reported: set[Finding] = set()

    def observe(self, now: float, found: Iterable[Finding], *, calm_since: float) -> list[Violation]:
        """Take note of one look at `now` (seconds); the findings whose bound is over since this look.

        `calm_since`: when the latest fault ended, or `now` during one. `SETTLED` begins there at the earliest.
        """
        current = set(found)
        self._since = {finding: self._since.get(finding, now) for finding in current}
        self._reported &= current
        over = [
            Violation(finding.rule, finding.subject, since, now - since)
            for finding, since in self._since.items()
            if finding not in self._reported and _is_over(finding, now, since, calm_since)
        ]
        self._reported |= {Finding(violation.rule, violation.subject) for violation in over}
        return sorted(over)

    def pending(self, now: float, seconds: float) -> list[Finding]:
        """The findings that have stood for at least `seconds` and are not reported yet."""
        return sorted(
            finding
            for finding, since in self._since.items()
            if now - since >= seconds and finding not in self._reported
        )


@dataclass(frozen=True, slots=True)
class Injury:
    """A fault that may end the games on one server: `until` is when its effect is over, in seconds."""

    deployment_id: str
    at: float
    until: float


def is_excused(deployment_id: str, at: float, injuries: Iterable[Injury]) -> bool:
    """Whether the games on this server may have ended at `at`: only a fault of the server itself excuses that."""
    return any(i.deployment_id == deployment_id and i.at <= at <= i.until for i in injuries)
