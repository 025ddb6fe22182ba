"""The rules of a soak: each finds what it is for, nothing in a consistent look, and counts only what lasts."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from tests.soak.invariants import (
    AT_ONCE,
    OVER_LIMIT,
    SETTLED,
    Finding,
    Injury,
    Look,
    Standing,
    findings,
    is_excused,
)
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    FleetRecord,
    SessionRecord,
    SessionState,
)

SERVER = DeploymentRecord("d", DeploymentState.READY, "g", "1", "launcher", 8, 0.0, seats={"s": 0.0})
SESSION = SessionRecord("s", SessionState.ACTIVE, "g", "1", "1", "m", 0.0, deployment_id="d")
FLEET = FleetRecord("g", "1", {"d": 0.0})
CONSISTENT = Look(
    at=100.0,
    sessions={"s": SESSION},
    deployments={"d": SERVER},
    fleets=[FLEET],
    leases=frozenset({"d"}),
    connections=frozenset({"s"}),
    servers=frozenset({"d"}),
    players={"s": "d"},
    limits={("g", "1"): 1},
)
NOBODY = frozenset[str]()
pytestmark = pytest.mark.row(62)


def rules(**changes: object) -> set[str]:
    """The broken rules of the consistent look with these changes."""
    return {finding.rule for finding in findings(dataclasses.replace(CONSISTENT, **changes))}  # type: ignore[arg-type]


def test_nothing_is_found_where_all_agrees() -> None:
    assert findings(CONSISTENT) == set()
    assert findings(Look(0.0)) == set()


def session(**changes: object) -> dict[str, SessionRecord]:
    return {"s": msgspec.structs.replace(SESSION, **changes)}


def server(**changes: object) -> dict[str, DeploymentRecord]:
    return {"d": msgspec.structs.replace(SERVER, **changes)}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"missing": "nats"}, "/readyz is not 200"),
        ({"sessions": {}}, "a seat without a session"),
        ({"deployments": server(seats={})}, "a session without a seat"),
        ({"deployments": {}, "fleets": [], "servers": NOBODY}, "a session without a seat"),
        ({"sessions": session(state=SessionState.CLOSING)}, "a session that does not end"),
        (
            {"sessions": session(state=SessionState.READY, deadline=99.0)},
            "a session past its deadline in ready",
        ),
        ({"players": {}}, "an active session without a player"),
        ({"sessions": {}}, "a player without an active session"),
        ({"sessions": session(state=SessionState.READY)}, "a player without an active session"),
        ({"connections": NOBODY}, "a player whom no game server reports"),
        ({"players": {}, "sessions": {}}, "a reported player who is not there"),
        ({"servers": frozenset({"d", "e"})}, "a server without a record"),
        ({"servers": NOBODY}, "a record without a server"),
        ({"leases": NOBODY}, "a ready server without a lease"),
        ({"servers": NOBODY}, "a lease without a server"),
        ({"deployments": server(state=DeploymentState.STOPPING)}, "a server that does not end"),
        ({"deployments": {}}, "a reservation without a record"),
        ({"fleets": []}, "a record without a reservation"),
        ({"limits": {("g", "1"): 0}}, OVER_LIMIT),
        ({"fleets": [FleetRecord("g", "1", {"d": 0.0, "e": 0.0})]}, OVER_LIMIT),
    ],
)
def test_each_rule_finds_what_it_is_for(changes: dict[str, object], rule: str) -> None:
    assert rule in rules(**changes)


def test_a_player_whose_server_is_dead_and_one_who_has_vanished_are_no_contradiction() -> None:
    """Both are known to their servers or clients only after a timeout."""
    assert "a player without an active session" not in rules(sessions={}, servers=NOBODY)
    assert rules(players={}, vanished=frozenset({"s"})) == set()


SEAT = Finding("a seat without a session", "s")
MANY = Finding(OVER_LIMIT, "g 1: 2 of 1")


def test_a_finding_is_reported_once_when_it_outlasts_its_bound() -> None:
    standing = Standing()
    assert standing.observe(0.0, {SEAT}, calm_since=0.0) == []
    assert standing.observe(SETTLED, {SEAT}, calm_since=0.0) == []
    (violation,) = standing.observe(SETTLED + 1, {SEAT}, calm_since=0.0)
    assert (violation.rule, violation.since, violation.lasted) == (SEAT.rule, 0.0, SETTLED + 1)
    assert standing.observe(SETTLED + 2, {SEAT}, calm_since=0.0) == []
    assert standing.pending(SETTLED + 2, 0.0) == []


def test_a_finding_that_goes_and_comes_back_begins_anew() -> None:
    standing = Standing()
    standing.observe(0.0, {SEAT}, calm_since=0.0)
    standing.observe(SETTLED - 1, set(), calm_since=0.0)
    assert standing.observe(SETTLED + 1, {SEAT}, calm_since=0.0) == []
    assert standing.pending(SETTLED + 4, 2.0) == [SEAT]
    assert standing.pending(SETTLED + 2, 2.0) == []


def test_the_bound_begins_when_the_latest_fault_is_over() -> None:
    standing = Standing()
    standing.observe(0.0, {SEAT}, calm_since=0.0)
    assert standing.observe(SETTLED + 1, {SEAT}, calm_since=50.0) == []
    assert standing.observe(SETTLED + 51, {SEAT}, calm_since=50.0) != []


def test_no_fault_excuses_more_servers_than_max_deployments() -> None:
    """It stands for a few looks, because a look is not one moment."""
    standing = Standing()
    assert standing.observe(0.0, {MANY}, calm_since=0.0) == []
    assert standing.observe(AT_ONCE + 1, {MANY}, calm_since=AT_ONCE + 1) != []


def test_only_a_fault_of_its_own_server_excuses_the_end_of_a_game() -> None:
    injuries = [Injury("d", 10.0, 30.0)]
    assert is_excused("d", 15.0, injuries)
    assert not is_excused("d", 9.0, injuries)
    assert not is_excused("d", 31.0, injuries)
    assert not is_excused("e", 15.0, injuries)
