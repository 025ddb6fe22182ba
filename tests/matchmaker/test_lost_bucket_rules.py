"""The rules for buckets that NATS has lost: who is taken for one whose record was lost, and who is not."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from tests.matchmaker.test_fleet_rules import judged, lease, record, session, snapshot
from tipoff_matchmaker.reconciler import actions, rules
from tipoff_matchmaker.sessions.state_machine import Connected, DeadlinePassed, SeatFound, step
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionState

pytestmark = pytest.mark.row(85)

NOW = 100.0
MADE_ANEW = 90.0


def lost(given: rules.Snapshot, *buckets: str) -> rules.Snapshot:
    return replace(given, lost=dict.fromkeys(buckets, MADE_ANEW))


def without_record(started_at: float = 50.0) -> rules.Snapshot:
    """`d1` runs, a session names it, and a player is connected to it; it has no record."""
    given = snapshot(
        listed=["d1"],
        leases=[msgspec.structs.replace(lease("d1"), started_at=started_at)],
        sessions=[session(SessionState.ACTIVE)],
        connections=["s1"],
    )
    return replace(given, connections={"s1": rules.Connection("7", "d1"), "s2": rules.Connection("8", "d1")})


def test_a_server_from_before_the_loss_is_rebuilt_with_its_seats() -> None:
    """Those of its sessions, and of the players whose sessions are lost too. Its session is not ended meanwhile."""
    found = judged(lost(without_record(), "deployments", "sessions"))
    (rebuilt,) = [action for action in found if isinstance(action, actions.RebuildDeployment)]
    assert (rebuilt.deployment.deployment_id, set(rebuilt.seats)) == ("d1", {"s1", "s2"})
    assert not any(isinstance(action, actions.ApplyEvent | actions.StopUnknown) for action in found)


@pytest.mark.parametrize(
    "given",
    [
        without_record(),
        lost(without_record(), "fleets"),
        lost(without_record(started_at=101.0), "deployments"),
    ],
    ids=["nothing is lost", "another bucket is lost", "the server is younger than the bucket"],
)
def test_any_other_server_without_a_record_is_stopped_after_the_grace(given: rules.Snapshot) -> None:
    memory = rules.Memory()
    assert not any(isinstance(a, actions.RebuildDeployment) for a in judged(given, memory))
    later = judged(replace(given, now=NOW + 1000), memory)
    assert any(isinstance(a, actions.StopUnknown) for a in later)


def test_a_server_without_a_lease_is_known_by_its_reservation() -> None:
    """As bevygap's."""
    given = replace(without_record(), leases={})
    assert not any(isinstance(a, actions.RebuildDeployment) for a in judged(lost(given, "deployments")))
    fleet = snapshot(fleet={"d1": 50.0}).fleets
    reserved = lost(replace(given, fleets=fleet), "deployments")
    assert any(isinstance(a, actions.RebuildDeployment) for a in judged(reserved))


@pytest.mark.parametrize(
    ("connection", "seated"),
    [(rules.Connection("7", "d1"), False), (rules.Connection("7"), True)],
    ids=["its server says where", "its seat says where"],
)
def test_a_player_without_a_session_is_given_one(connection: rules.Connection, seated: bool) -> None:
    server = record("d1", created_at=50.0, seats={"s1": 60.0} if seated else {})
    given = replace(snapshot(server, sessions=[], connections=["s1"]), connections={"s1": connection})
    found = judged(lost(given, "sessions"))
    (rebuilt,) = [action for action in found if isinstance(action, actions.RebuildSession)]
    assert (rebuilt.session_id, rebuilt.client_id, rebuilt.deployment_id) == ("s1", "7", "d1")
    assert not any(isinstance(action, actions.FreeSeats) for action in found)


def test_a_player_whom_nobody_can_place_is_left_alone() -> None:
    given = snapshot(record("d1"), sessions=[], connections=["s1"])
    assert not any(
        isinstance(a, actions.ApplyEvent | actions.RebuildSession) for a in judged(lost(given, "sessions"))
    )
    assert any(isinstance(a, actions.ApplyEvent) for a in judged(given))


def test_lost_reservations_of_living_servers_are_written_again() -> None:
    given = snapshot(record("d1"), record("d2", state=DeploymentState.GONE), fleet={})
    found = [action for action in judged(lost(given, "fleets")) if isinstance(action, actions.Reserve)]
    assert [action.deployment_id for action in found] == ["d1"]
    assert not any(isinstance(action, actions.Reserve) for action in judged(given))


@pytest.mark.parametrize("settled", [False, True])
def test_no_unknown_server_is_stopped_before_all_had_the_time_to_write_their_leases(settled: bool) -> None:
    """A new matchmaker on an empty store cannot know yet that records were lost."""
    memory = rules.Memory()
    given = replace(without_record(), leases={}, settled=settled)
    judged(given, memory)
    later = judged(replace(given, now=NOW + 1000), memory)
    assert any(isinstance(a, actions.StopUnknown) for a in later) is settled


@pytest.mark.parametrize("settled", [False, True])
def test_no_connection_to_an_unknown_server_is_dropped_before_then(settled: bool) -> None:
    memory = rules.Memory()
    given = snapshot(sessions=[], listed=[], settled=settled)
    given = replace(given, connections={"s1": rules.Connection("7", "d1")})
    found = [*judged(given, memory), *judged(replace(given, now=NOW + 1), memory)]
    assert any(isinstance(a, actions.DropConnection) for a in found) is settled
    assert settled or not any(isinstance(a, actions.ApplyEvent | actions.KickFrom) for a in found)


def test_who_plays_while_the_session_looks_for_a_seat_again_is_seated() -> None:
    """An older backup, made while the player waited; the deadline of then has passed."""
    looking = session(SessionState.REQUESTED, deployment_id="", boot_id="", deadline=NOW - 50)
    given = snapshot(record("d1", boot_id="b1"), sessions=[looking])
    given = replace(given, connections={"s1": rules.Connection("7", "d1")})
    seated = SeatFound("d1", "b1", NOW + 60)
    found = judged(lost(given, "sessions"))
    assert found[-2:] == [actions.ApplyEvent("s1", seated), actions.ApplyEvent("s1", Connected())]
    after = step(step(looking, seated, NOW).record, Connected(), NOW).record
    assert after is not None
    assert (after.state, after.deployment_id) == (SessionState.ACTIVE, "d1")


@pytest.mark.parametrize("servers", [[], [record("d1", state=DeploymentState.GONE)]])
def test_it_is_not_ended_while_its_server_has_no_record(servers: list[DeploymentRecord]) -> None:
    looking = session(SessionState.REQUESTED, deployment_id="", boot_id="", deadline=NOW - 50)
    given = replace(snapshot(*servers, sessions=[looking]), connections={"s1": rules.Connection("7", "d1")})
    assert not any(isinstance(a, actions.ApplyEvent) for a in judged(lost(given, "sessions")))


def test_whoever_is_connected_is_not_ended_for_the_deadline_of_looking_for_a_seat() -> None:
    looking = session(SessionState.REQUESTED, deadline=NOW - 50)
    assert step(looking, DeadlinePassed(connected=True), NOW).record is None
    ended = step(looking, DeadlinePassed(connected=False), NOW).record
    assert ended is not None
    assert ended.state is SessionState.CLOSING
