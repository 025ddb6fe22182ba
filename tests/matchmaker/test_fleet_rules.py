"""Deployments' life and the size of a fleet; what makes a server ready; the rules of the reconciler."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.matchmaker.world import ARENA
from tipoff_matchmaker.bevygap.contexts import decode_context
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.readiness import ReadyServer, from_lease, from_orchestrator
from tipoff_matchmaker.reconciler import actions, rules
from tipoff_matchmaker.seats.rules import leave
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import Deployment, Port, RunState
from tipoff_shared.errors import Malformed
from tipoff_shared.games import Game
from tipoff_shared.messages import Transports, UdpAddress
from tipoff_shared.primitives.retry import backoff
from tipoff_shared.records import (
    LEASE_TTL,
    DeploymentRecord,
    DeploymentState,
    FleetRecord,
    GameserverLease,
    LeaseState,
    SessionRecord,
    SessionState,
)

D = DeploymentState
UDP = Transports(udp=UdpAddress("127.0.0.1", 7777))
GRACE = rules.Grace(lease=10, orphan=30, slack=1)


def record(name: str = "d1", state: DeploymentState = D.READY, **changes: object) -> DeploymentRecord:
    plain = DeploymentRecord(
        name, state, "arena", "1", "fake", 4, created_at=0.0, boot_id="b1", transports=UDP
    )
    return msgspec.structs.replace(plain, **changes)


def lease(name: str = "d1", **changes: object) -> GameserverLease:
    plain = GameserverLease(name, "b1", "arena", "1", LeaseState.READY, UDP, 4)
    return msgspec.structs.replace(plain, **changes)


def seats(*members: str) -> dict[str, float]:
    return dict.fromkeys(members, 1000.0)


# Deployments.


def test_a_deployment_goes_its_way() -> None:
    """planned, starting, ready, draining, stopping, gone."""
    first = state_machine.planned("d1", ARENA, 5.0)
    assert (first.state, first.deadline) == (D.PLANNED, 5.0 + ARENA.start_timeout)
    second = state_machine.started(first)
    third = state_machine.ready(second, ReadyServer(UDP, 16, "b1"), 6.0)
    assert (third.state, third.capacity, third.empty_since, third.deadline) == (D.READY, 4, 6.0, 0.0)
    fourth = state_machine.draining(third, "why", only_empty=True)
    fifth = state_machine.stopping(fourth, "why", 16.0)
    sixth = state_machine.gone(fifth, "over")
    assert [r.state for r in (second, fourth, fifth, sixth)] == [D.STARTING, D.DRAINING, D.STOPPING, D.GONE]
    assert sixth.reason == "why"


@pytest.mark.parametrize("state", list(D))
def test_late_and_doubled_events_change_nothing(state: DeploymentState) -> None:
    """Each answers with the very same record when it does not apply."""
    before = record(state=state, empty_since=1.0)
    if state is not D.PLANNED:
        assert state_machine.started(before) is before
    if state not in (D.PLANNED, D.STARTING):
        assert state_machine.ready(before, ReadyServer(UDP, 4, "b1"), 9.0) is before
    if state is not D.READY:
        assert state_machine.draining(before, "", only_empty=False) is before
    if state in (D.STOPPING, D.GONE):
        assert state_machine.stopping(before, "", 1.0) is before
    if state is D.GONE:
        assert state_machine.gone(before, "") is before


def test_a_server_with_players_does_not_drain_for_being_empty() -> None:
    """Somebody came between the judgement and the write."""
    taken = record(seats=seats("a"))
    assert state_machine.draining(taken, "", only_empty=True) is taken


def test_what_the_orchestrator_says_does_not_undo_what_the_server_said() -> None:
    """An announcement without a boot id is worth less than one with it."""
    before = record(empty_since=1.0)
    other = Transports(udp=UdpAddress("10.0.0.1", 1))
    assert state_machine.ready(before, ReadyServer(other), 9.0) is before


@pytest.mark.parametrize(
    ("game", "waiting", "fleet", "expected"),
    [
        ({}, 0, [], 0),
        ({}, 1, [], 1),
        ({}, 5, [], 2),
        ({}, 100, [], 4),  # max_deployments
        ({}, 1, [record()], 0),  # a seat is free
        ({}, 5, [record()], 1),
        ({}, 3, [record(state=D.STARTING)], 0),  # on its way
        ({}, 5, [record(state=D.STARTING)], 1),
        ({}, 1, [record(seats=seats("a", "b", "c", "d"))], 1),
        ({}, 1, [record(state=D.DRAINING)], 1),
        ({}, 1, [record(state=D.STOPPING)], 1),
        ({}, 1, [record(state=D.GONE)], 1),
        ({"min_ready": 1}, 0, [], 1),
        ({"min_ready": 1}, 0, [record()], 0),
        ({"min_ready": 1}, 0, [record(seats=seats("a"))], 1),
        ({"min_ready": 1}, 0, [record(seats=seats("a")), record(state=D.PLANNED)], 0),
        ({"min_ready": 1}, 1, [], 2),  # one for him, one to keep ready
        ({"min_ready": 2, "max_deployments": 2}, 0, [record(seats=seats("a"))], 1),
        ({"max_deployments": 1}, 9, [record(seats=seats("a", "b", "c", "d"))], 0),
        ({"max_deployments": 1}, 9, [record(state=D.STOPPING)], 0),  # it still counts
    ],
)
def test_how_many_servers_to_start(
    game: dict[str, int], waiting: int, fleet: list[DeploymentRecord], expected: int
) -> None:
    """Enough for those who wait and for min_ready, less those on their way, within max_deployments."""
    assert state_machine.starts_wanted(msgspec.structs.replace(ARENA, **game), waiting, fleet) == expected


@pytest.mark.row(91)
@pytest.mark.parametrize(
    ("game", "waiting", "fleet", "expected"),
    [
        ({}, 1, [record(locked=True)], 1),  # its three free seats are nobody's
        ({"min_ready": 1}, 0, [record(locked=True)], 1),
        ({"min_ready": 1}, 0, [record(locked=True), record("d2")], 0),
        ({"max_deployments": 1}, 1, [record(locked=True)], 0),
    ],
)
def test_a_locked_server_is_no_place_for_new_players(
    game: dict[str, int], waiting: int, fleet: list[DeploymentRecord], expected: int
) -> None:
    """Another one starts where one is needed, up to the limit."""
    assert state_machine.starts_wanted(msgspec.structs.replace(ARENA, **game), waiting, fleet) == expected


@pytest.mark.row(91)
def test_a_locked_server_that_is_empty_is_not_kept_in_reserve() -> None:
    """It goes after its time; the others stay as if it were not there."""
    game = msgspec.structs.replace(ARENA, min_ready=1, empty_ttl=30)
    fleet = [record("open", empty_since=5.0), record("locked", empty_since=60.0, locked=True)]
    assert state_machine.to_retire(game, fleet, 80.0) == []
    assert [r.id for r in state_machine.to_retire(game, fleet, 100.0)] == ["locked"]
    more = [*fleet, record("newer", empty_since=50.0)]
    assert [r.id for r in state_machine.to_retire(game, more, 100.0)] == ["locked", "open"]


@pytest.mark.row(91)
def test_a_server_is_locked_while_its_lease_says_so() -> None:
    """An orchestrator knows nothing of it; a new boot begins open."""
    locked = state_machine.ready(record(empty_since=1.0), from_lease(lease(locked=True)), 9.0)
    assert locked.locked
    assert state_machine.ready(locked, ReadyServer(UDP, 4, "b1"), 9.0).locked
    assert not state_machine.ready(locked, from_lease(lease(boot_id="b2")), 9.0).locked


fleets = st.lists(
    st.builds(
        lambda state, taken, locked: record(state=state, seats=seats(*"abcd"[:taken]), locked=locked),
        st.sampled_from(list(D)),
        st.integers(0, 4),
        st.booleans(),
    ),
    max_size=8,
)


@given(st.integers(0, 50), fleets, st.integers(0, 3), st.integers(1, 6))
def test_a_fleet_is_never_larger_than_allowed_and_never_starts_in_vain(
    waiting: int, fleet: list[DeploymentRecord], min_ready: int, most: int
) -> None:
    """Whatever there is: within max_deployments, and no more than one server for each who waits beyond min_ready."""
    game = msgspec.structs.replace(ARENA, min_ready=min(min_ready, most), max_deployments=most)
    count = state_machine.starts_wanted(game, waiting, fleet)
    live = sum(map(state_machine.is_live, fleet))
    assert 0 <= count <= max(0, most - live)
    assert count <= waiting + min_ready


def test_the_longest_empty_retire_first_and_min_ready_stay() -> None:
    """Only those empty for empty_ttl, and only the surplus."""
    game = msgspec.structs.replace(ARENA, min_ready=1, empty_ttl=30)
    fleet = [
        record("young", empty_since=95.0),
        record("old", empty_since=10.0),
        record("older", empty_since=5.0),
        record("taken", seats=seats("a")),
        record("draining", state=D.DRAINING, empty_since=1.0),
    ]
    assert [r.id for r in state_machine.to_retire(game, fleet, 100.0)] == ["older", "old"]
    assert state_machine.to_retire(game, fleet[:1], 200.0) == []


@pytest.mark.parametrize(("now", "retires"), [(39.9, False), (40.0, True)])
def test_a_server_retires_when_it_has_been_empty_for_its_time_and_not_before(
    now: float, retires: bool
) -> None:
    game = msgspec.structs.replace(ARENA, min_ready=0, empty_ttl=30)
    assert bool(state_machine.to_retire(game, [record(empty_since=10.0)], now)) is retires


def test_no_server_of_a_dropped_game_is_kept() -> None:
    """It is not in games.toml any more: also its only empty server retires, after the usual time."""
    usual = Game("any", "1").empty_ttl
    fleet = [record(empty_since=1.0)]
    assert state_machine.to_retire(None, fleet, 1.0 + usual) == fleet
    assert state_machine.to_retire(None, fleet, 0.9 + usual) == []


@pytest.mark.parametrize("boot", ["b1", "b2"])
def test_a_server_that_announces_itself_while_occupied_is_empty_from_its_last_departure(boot: str) -> None:
    """Not from the announcement: else it retires with its last player."""
    occupied = record(boot_id="b1", seats=seats("a"))
    again = state_machine.ready(occupied, ReadyServer(UDP, 4, boot), 50.0)
    left = leave(again, ["a"], 90.0)
    assert (left.seats, left.empty_since) == ({}, 90.0)


# What makes it ready.


def deployment(**ports: tuple[int, str]) -> Deployment:
    made = {name: Port(number, number + 1, protocol) for name, (number, protocol) in ports.items()}
    return Deployment("d1", "arena", "1", RunState.RUNNING, host="203.0.113.7", ports=made)


def test_ports_are_known_by_name_or_by_protocol() -> None:
    """`udp` is `udp`; a game's own name for its UDP port is found by the protocol."""
    named = from_orchestrator(deployment(udp=(1, "UDP"), websocket=(2, "TCP"), tcp=(3, "TCP"))).transports
    assert named.udp == UdpAddress("203.0.113.7", 2)
    assert named.websocket is not None
    assert named.websocket.url == "ws://203.0.113.7:3/"
    assert named.tcp == UdpAddress("203.0.113.7", 4)
    own = from_orchestrator(deployment(gameport=(1, "UDP"), web=(2, "WSS"))).transports
    assert own.udp == UdpAddress("203.0.113.7", 2)
    assert own.websocket is not None
    assert own.websocket.url == "wss://203.0.113.7:3/"
    assert own.tcp is None


def test_a_udp_port_with_a_certificate_is_webtransport_too() -> None:
    """bevygap's servers have one port and a digest."""
    arrival = from_orchestrator(deployment(server=(1, "UDP")), "e3:76")
    assert arrival.transports.webtransport is not None
    assert arrival.transports.webtransport.url == "https://203.0.113.7:2"
    assert arrival.cert_digest == "e3:76"


@given(st.binary(max_size=200) | st.from_regex(rb'\{"(request_id|public_ip)": .*\}', fullmatch=True))
def test_any_bytes_are_a_context_or_malformed(data: bytes) -> None:
    """Anybody in the game server's role may publish there."""
    try:
        context = decode_context(data)
    except Malformed:
        return
    assert context.ids


@pytest.mark.parametrize("public_ip", [">", "*", "203.0.113.7 x", "", "a" * 300, 7, None, ["203.0.113.7"]])
def test_a_context_tells_an_address_or_none(public_ip: object) -> None:
    """A certificate's digest is looked for by it: one server must not come by another's."""
    assert decode_context(msgspec.json.encode({"request_id": "a", "public_ip": public_ip})).public_ip == ""
    context = decode_context(msgspec.json.encode({"request_id": "a", "public_ip": "203.0.113.7"}))
    assert context.public_ip == "203.0.113.7"


# The reconciler.


def snapshot(
    *records: DeploymentRecord,
    now: float = 100.0,
    settled: bool = True,
    before: list[DeploymentRecord] | None = None,
    leases: list[GameserverLease] | None = None,
    listed: list[str] | None = None,
    sessions: list[SessionRecord] | None = None,
    connections: list[str] | None = None,
    departures: dict[str, int] | None = None,
    fleet: dict[str, float] | None = None,
    silent: bool = False,
) -> rules.Snapshot:
    ids = [r.id for r in records if r.state is not D.GONE] if listed is None else listed
    known = [lease(r.id) for r in records] if leases is None else leases
    if fleet is None:  # a live server has its reservation
        fleet = {r.id: r.created_at for r in records if r.state is not D.GONE}
    running = {id: Deployment(id, "arena", "1", RunState.RUNNING) for id in ids}
    return rules.Snapshot(
        now=now,
        settled=settled,
        games={ARENA.key: msgspec.structs.replace(ARENA, empty_ttl=30)},
        before={r.id: r for r in (records if before is None else before)},
        after={r.id: r for r in records},
        leases={entry.deployment_id: entry for entry in known},
        listed={"fake": None if silent else running},
        fleets={"arena.1": FleetRecord("arena", "1", fleet)},
        sessions=None if sessions is None else {s.id: s for s in sessions},
        connections=None if connections is None else {id: rules.Connection("1") for id in connections},
        departures=departures or {},
    )


def judged(given: rules.Snapshot, memory: rules.Memory | None = None) -> list[actions.Action]:
    return rules.judge(given, GRACE, memory or rules.Memory(), lambda deployment_id: False)


def session(state: SessionState, **changes: object) -> SessionRecord:
    plain = SessionRecord("s1", state, "arena", "1", "7", "m1", 0.0, 50.0, deployment_id="d1", boot_id="b1")
    return msgspec.structs.replace(plain, **changes)


TAKEN = record(seats=seats("s1"))


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (snapshot(TAKEN), [actions.Trust("d1")]),
        (snapshot(TAKEN, silent=True), []),
        (snapshot(TAKEN, listed=[]), [actions.Confirm("d1", "its orchestrator does not list it")]),
        (snapshot(TAKEN, listed=[], before=[]), []),  # it came after the list was made
        (snapshot(TAKEN, leases=[]), [actions.Confirm("d1", "it has no lease")]),
        (snapshot(TAKEN, leases=[lease(boot_id="b2")]), [actions.FollowLease(lease(boot_id="b2"))]),
        (
            snapshot(TAKEN, leases=[lease(state=LeaseState.ENDED)]),
            [actions.FollowLease(lease(state=LeaseState.ENDED))],
        ),
        (snapshot(record(state=D.DRAINING, reason="op")), [actions.StopServer("d1", "op")]),
        (snapshot(record(state=D.DRAINING, seats=seats("s1"))), []),
        (snapshot(record(state=D.STOPPING, deadline=99.0, reason="op")), [actions.StopServer("d1", "op")]),
        (snapshot(record(state=D.STOPPING, deadline=101.0)), []),
        (
            snapshot(record(state=D.PLANNED, deadline=98.0), leases=[]),
            [actions.StopServer("d1", "it was not ready in time")],
        ),
        (snapshot(record(state=D.PLANNED, deadline=200.0), listed=[], leases=[]), []),
        (snapshot(record(state=D.STARTING, deadline=200.0)), [actions.FollowLease(lease())]),
        (
            snapshot(record(state=D.STARTING, deadline=200.0), listed=[], leases=[]),
            [actions.Confirm("d1", "its orchestrator does not list it")],
        ),
        (snapshot(record(empty_since=10.0)), [actions.Trust("d1"), actions.StopIfEmpty("d1")]),
        (snapshot(record(state=D.GONE), fleet={"d1": 0.0}), [actions.Unreserve("arena", "1", "d1")]),
        (snapshot(fleet={"d9": 0.0}), [actions.Unreserve("arena", "1", "d9")]),
        (snapshot(fleet={"d9": 90.0}), []),
        (snapshot(fleet={"d9": 0.0}, listed=["d9"]), []),
    ],
)
def test_what_the_sweep_does_about_a_server(given_: rules.Snapshot, expected: list[actions.Action]) -> None:
    """One fact, one action."""
    assert judged(given_) == expected


@pytest.mark.row(13, 88)
@pytest.mark.parametrize("state", [state for state in D if state is not D.GONE])
def test_the_record_of_an_ended_server_that_is_there_again_is_closed_at_once(state: D) -> None:
    """As after a kill of nats-server: it would count in the fleet, and its deadline or the next doubts may be far."""
    old = record("old", state, deadline=1000.0, seats=seats("s1"))
    lives = record("lives")
    made = judged(snapshot(old, lives, listed=["lives"], fleet={"lives": 0.0}, leases=[lease("lives")]))
    assert made == [actions.CloseRecord(old), actions.Trust("lives")]


@pytest.mark.row(13, 88)
def test_any_number_of_them_is_closed_and_no_brake_holds() -> None:
    """None of them is a server that is stopped."""
    old = [record(f"old{number}") for number in range(100)]
    made = judged(snapshot(*old, listed=[], fleet={}, leases=[]))
    kept, held = rules.brake(made, len(old))
    assert (set(map(type, kept)), len(kept), held) == ({actions.CloseRecord}, 100, 0)


@pytest.mark.parametrize(
    "given_",
    [
        snapshot(TAKEN, listed=[], leases=[]),
        snapshot(TAKEN, listed=["d1"], fleet={}),
        snapshot(TAKEN, silent=True, fleet={}),
        snapshot(TAKEN, listed=[], fleet={}, before=[]),
        snapshot(TAKEN, listed=[], fleet={}, before=[record()]),
        dataclasses.replace(snapshot(TAKEN, listed=[], fleet={}), lost={"fleets": 99.0}),
        dataclasses.replace(snapshot(TAKEN, listed=[], fleet={}), lost={"deployments": 99.0}),
        dataclasses.replace(snapshot(TAKEN, listed=[], fleet={}), games={}),
    ],
    ids=[
        "it has a reservation",
        "it runs",
        "its orchestrator does not answer",
        "it came after the reservations were read",
        "it has changed since",
        "reservations are lost",
        "records are lost",
        "nobody plans its game any more",
    ],
)
def test_no_other_record_is_taken_for_one_of_the_past(given_: rules.Snapshot) -> None:
    assert not any(isinstance(action, actions.CloseRecord) for action in judged(given_))


def kicks_of(connections: Mapping[str, rules.Connection], *servers: DeploymentRecord) -> dict[str, int]:
    """What is done about connections whose sessions are over, listed every 5 s for as long as they are there."""
    memory, done = rules.Memory(), Counter[str]()
    for now in range(100, 140, 5):
        given = dataclasses.replace(
            snapshot(*servers, sessions=[], now=float(now)), connections=dict(connections)
        )
        made = judged(given, memory)
        kicks = [a for a in made if isinstance(a, actions.KickFrom | actions.ApplyEvent)]
        dropped = {a.session_id for a in made if isinstance(a, actions.DropConnection)}
        done.update(kicks=len(kicks), everywhere=sum(isinstance(a, actions.ApplyEvent) for a in kicks))
        done.update(dropped=len(dropped))
        connections = {id: each for id, each in connections.items() if id not in dropped}
    return dict(done)


@pytest.mark.row(13, 88)
@pytest.mark.parametrize(
    ("server", "kicks", "everywhere"),
    [("d1", 3, 0), ("d9", 0, 0), ("", 3, 3)],
    ids=["their server lives", "their server has ended", "nobody says where they are"],
)
def test_thousands_of_past_connections_are_no_thousands_of_kicks(
    server: str, kicks: int, everywhere: int
) -> None:
    """A kill of nats-server has brought them back. Only their server is told, three times, and they go."""
    past = {f"s{number}": rules.Connection("7", server) for number in range(1000)}
    done = kicks_of(past, record("d1"), record("d2"))
    assert done == {"kicks": 1000 * kicks, "everywhere": 1000 * everywhere, "dropped": 1000}


def test_a_missing_lease_ends_a_server_only_after_the_grace() -> None:
    """And never while we have not been connected for long enough to know."""
    memory = rules.Memory()
    assert judged(snapshot(TAKEN, leases=[], now=100), memory) == [actions.Confirm("d1", "it has no lease")]
    assert judged(snapshot(TAKEN, leases=[], now=109), memory) == [actions.Confirm("d1", "it has no lease")]
    assert judged(snapshot(TAKEN, leases=[], now=111, settled=False), memory) == [
        actions.Confirm("d1", "it has no lease")
    ]
    assert judged(snapshot(TAKEN, leases=[], now=111), memory) == [
        actions.StopServer("d1", "it sends no heartbeat")
    ]
    assert judged(snapshot(TAKEN, now=112), memory) == [actions.Trust("d1")]
    assert judged(snapshot(TAKEN, leases=[], now=120), memory) == [actions.Confirm("d1", "it has no lease")]


def test_an_unknown_server_is_stopped_only_after_the_grace() -> None:
    """It may be somebody's deployment that is not written down yet."""
    memory = rules.Memory()
    assert judged(snapshot(listed=["stray"], now=100), memory) == []
    assert judged(snapshot(listed=["stray"], now=131), memory) == [actions.StopUnknown("fake", "stray")]


@pytest.mark.parametrize(
    ("known", "connections", "expected"),
    [
        (session(SessionState.READY, deadline=200.0), [], None),
        (session(SessionState.READY, deadline=200.0), ["s1"], actions.CheckSession),
        (session(SessionState.READY, deadline=98.0), [], actions.CheckSession),
        (session(SessionState.ACTIVE), ["s1"], None),
        (session(SessionState.ACTIVE, deployment_id="d9"), ["s1"], actions.ApplyEvent),
        (session(SessionState.ACTIVE, boot_id="b0"), ["s1"], actions.ApplyEvent),
        (session(SessionState.REQUESTED, deadline=98.0, deployment_id=""), [], actions.ApplyEvent),
        (session(SessionState.REQUESTED, deadline=200.0, deployment_id=""), [], None),
        (session(SessionState.CLOSING), [], actions.ReleaseSession),
        (session(SessionState.GONE), ["s1"], actions.ApplyEvent),
        (session(SessionState.GONE), [], None),
    ],
)
def test_what_the_sweep_does_about_a_session(
    known: SessionRecord, connections: list[str], expected: type[object] | None
) -> None:
    """Its deadline, its server, its connection."""
    made = judged(snapshot(TAKEN, sessions=[known], connections=connections))
    about = [action for action in made if not isinstance(action, actions.Trust | actions.FreeSeats)]
    assert [type(action) for action in about] == ([] if expected is None else [expected])


@pytest.mark.parametrize("state", [SessionState.READY, SessionState.ACTIVE])
def test_a_departure_nobody_has_handled_is_looked_at_once(state: SessionState) -> None:
    """Its tombstone is there, and the session still sits: whoever was told died with the news."""
    given_ = snapshot(TAKEN, sessions=[session(state, deadline=200.0)], connections=[], departures={"s1": 9})
    assert judged(given_) == [actions.Trust("d1"), actions.CheckSession("s1")]


@pytest.mark.parametrize("known", [[session(SessionState.CLOSING)], [session(SessionState.GONE)], []])
def test_a_tombstone_is_forgotten_after_the_grace(known: list[SessionRecord]) -> None:
    """Before it, somebody may be handling the news: it must be acknowledged first."""
    memory = rules.Memory()

    def forgotten(now: float) -> list[actions.Action]:
        made = judged(snapshot(now=now, sessions=known, connections=[], departures={"s1": 9}), memory)
        return [action for action in made if isinstance(action, actions.ForgetDeparture)]

    assert forgotten(100) == []
    assert forgotten(100 + GRACE.orphan) == []
    assert forgotten(101 + GRACE.orphan) == [actions.ForgetDeparture("s1", 9)]


def test_a_seat_nobody_holds_is_freed_after_its_deadline() -> None:
    """Before it, somebody may be about to write the record."""
    early = record(seats={"s1": 120.0})
    late = record(seats={"s1": 90.0})
    assert judged(snapshot(early, sessions=[], connections=[])) == [actions.Trust("d1")]
    assert judged(snapshot(late, sessions=[], connections=[])) == [
        actions.Trust("d1"),
        actions.FreeSeats("d1", {"s1": 90.0}),
    ]


def test_the_brake_holds_back_all_but_a_few() -> None:
    """At most max(3, 20 %) destructive actions in one cycle; the others go through."""
    wanted: list[actions.Action] = [actions.StopServer(f"d{n}", "") for n in range(10)]
    wanted.append(actions.Trust("d1"))
    kept, held = rules.brake(wanted, servers=10)
    assert held == 7
    assert kept[-1] == actions.Trust("d1")
    assert rules.brake(wanted, servers=40)[1] == 2


@given(st.integers(1, 100), st.floats(0.01, 1))
def test_pauses_grow_and_are_bounded(tries: int, first: float) -> None:
    """Half to all of the doubled pause, five seconds at most; never less than what the other side asked for."""
    assert first / 2 <= backoff(tries, first) <= 5.0
    assert backoff(tries, first, retry_after=7.0) == 7.0


def test_the_settings_suit_the_leases_that_servers_write() -> None:
    """One default, in two places."""
    assert Settings().lease_ttl == LEASE_TTL


def test_what_is_being_started_or_ended_here_needs_no_reminder() -> None:
    """But a hint that was lost is made good all the same."""
    late = record(state=D.STARTING, deadline=1.0)

    def judged_busy(given: rules.Snapshot) -> list[actions.Action]:
        return rules.judge(given, GRACE, rules.Memory(), lambda deployment_id: True)

    assert judged_busy(snapshot(late, leases=[])) == []
    assert judged_busy(snapshot(late)) == [actions.FollowLease(lease())]
    early = record(state=D.STARTING, deadline=200.0)
    assert judged_busy(snapshot(early, listed=[], leases=[])) == [
        actions.Confirm("d1", "its orchestrator does not list it")
    ]
    assert judged_busy(snapshot(record(state=D.STOPPING, deadline=1.0))) == []
