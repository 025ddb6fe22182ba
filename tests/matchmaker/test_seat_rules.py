"""The rules of seats; and a model of several matchmakers that die at any line."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
)

from tipoff_matchmaker.allocators.packing import Packing
from tipoff_matchmaker.errors import NoSeat
from tipoff_matchmaker.seats.rules import free_seats, holds_seat, leave, stale_seats, take
from tipoff_matchmaker.sessions.state_machine import (
    Connected,
    DeadlinePassed,
    Effect,
    Event,
    GivenUp,
    Left,
    Released,
    SeatFound,
    ServerGone,
    step,
)
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionRecord, SessionState

HOLD = 15.0
CLAIM = 60.0


def deployment(name: str = "d1", capacity: int = 2, **changes: object) -> DeploymentRecord:
    record = DeploymentRecord(
        name, DeploymentState.READY, "arena", "1", "fake", capacity, created_at=0.0, boot_id="b"
    )
    return msgspec.structs.replace(record, **changes)


def test_seats_are_taken_all_or_none() -> None:
    """A group of two does not fit where one seat is free."""
    record = take(deployment(), ("a",), 10.0)
    with pytest.raises(NoSeat):
        take(record, ("b", "c"), 10.0)
    assert free_seats(take(record, ("b",), 10.0)) == 0


def test_a_member_has_one_seat_however_often_it_asks() -> None:
    """And whoever wrote it first no longer owns it."""
    record = take(take(deployment(), ("a",), 10.0), ("a",), 11.0)
    assert record.seats == {"a": 11.0}
    assert leave(record, ("a",), 5.0, until=10.0) is record
    assert leave(record, ("a",), 5.0, until=11.0).seats == {}


def test_a_full_server_keeps_its_members_asking_again() -> None:
    """A repeat is not turned away because the server is full."""
    full = take(deployment(), ("a", "b"), 10.0)
    assert take(full, ("a",), 11.0).seats == {"a": 11.0, "b": 10.0}


@pytest.mark.row(91)
def test_a_locked_server_keeps_its_members_and_takes_no_more() -> None:
    """Whoever holds a seat may ask again, with others too."""
    locked = deployment(capacity=3, locked=True, seats={"a": 10.0})
    assert free_seats(locked) == 0
    assert take(locked, ("a",), 11.0).seats == {"a": 11.0}
    for members in (("b",), ("a", "b")):
        with pytest.raises(NoSeat):
            take(locked, members, 11.0)
    assert leave(locked, ("a",), 5.0).seats == {}


@pytest.mark.parametrize("state", [s for s in DeploymentState if s is not DeploymentState.READY])
def test_only_ready_servers_have_seats(state: DeploymentState) -> None:
    """Nobody is sent to one that comes or goes."""
    record = deployment(state=state)
    assert free_seats(record) == 0
    with pytest.raises(NoSeat):
        take(record, ("a",), 10.0)


def test_it_is_empty_since_the_last_one_left() -> None:
    """Which is what `empty_ttl` counts from."""
    record = take(deployment(), ("a", "b"), 10.0)
    record = leave(record, ("a",), 5.0)
    assert record.empty_since == 0
    record = leave(record, ("b",), 6.0)
    assert record.empty_since == 6.0
    assert take(record, ("c",), 20.0).empty_since == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 5)), max_size=60), st.integers(1, 5))
def test_packing_picks_the_fullest_that_fits(changes: list[tuple[int, int]], count: int) -> None:
    """Whatever was set before, in whatever order."""
    packing = Packing()
    free: dict[str, int] = {}
    for number, seats in changes:
        packing.set(f"d{number}", seats)
        free[f"d{number}"] = seats
    fitting = {name: seats for name, seats in free.items() if seats >= count}
    picked = packing.pick(count)
    if fitting:
        assert picked is not None
        assert free[picked] == min(fitting.values())
    else:
        assert picked is None
    assert packing.free == sum(seats for seats in free.values() if seats > 0)


@dataclass
class Work:
    """One matchmaker on one request: what it knows between two of its writes."""

    session_id: str
    deployment_id: str
    until: float
    shared: bool = False
    lost: bool = field(default=False)


class Matchmakers(RuleBasedStateMachine):
    """Several matchmakers work on the same sessions and servers. Each rule is one write, or what one reads before
    it, as the drivers do them; a work whose next rule never comes is a matchmaker that has died there."""

    seated = Bundle("seated")
    lost = Bundle("lost")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.tick = 0
        self.deployments = {name: deployment(name) for name in ("d1", "d2")}
        self.sessions: dict[str, SessionRecord] = {}
        self.connected: set[str] = set()
        self.giving_back: set[str] = set()

    # One's own writes.

    @rule(target=seated, session=st.sampled_from("abcdef"), where=st.sampled_from(["d1", "d2"]))
    def take_a_seat(self, session: str, where: str) -> object:
        record = self.deployments[where]
        self.tick += 1
        until = self.now + HOLD + self.tick * 1e-6
        shared = session in record.seats
        try:
            self.deployments[where] = take(record, (session,), until)
        except NoSeat:
            return multiple()
        return Work(session, where, until, shared)

    @rule(session=st.sampled_from("abcdef"))
    def write_down_a_request(self, session: str) -> None:
        if session not in self.sessions:
            self.sessions[session] = SessionRecord(
                session, SessionState.REQUESTED, "arena", "1", "7", "m", self.now, deadline=self.now + 30
            )

    @rule(target=lost, work=consumes(seated))
    def make_it_ready(self, work: Work) -> object:
        """Create, or compare-and-set from requested; the loser goes on to undo."""
        if self.now > work.until:  # requests have deadlines: nobody writes so late
            return multiple()
        record = self.sessions.get(work.session_id)
        event = SeatFound(work.deployment_id, "b", self.now + CLAIM)
        if record is None:
            record = SessionRecord(work.session_id, SessionState.REQUESTED, "arena", "1", "7", "m", self.now)
        outcome = step(record, event, self.now)
        if outcome.record is None:
            return work
        self.sessions[work.session_id] = outcome.record
        return multiple()

    @rule(work=consumes(lost))
    def undo(self, work: Work) -> None:
        if not work.shared:
            record = self.deployments[work.deployment_id]
            self.deployments[work.deployment_id] = leave(
                record, (work.session_id,), self.now, until=work.until
            )

    @rule(work=consumes(seated))
    def abandon(self, work: Work) -> None:
        """The player's deadline came before the record was written."""
        self.undo_of(work)

    def undo_of(self, work: Work) -> None:
        if not work.shared:
            record = self.deployments[work.deployment_id]
            self.deployments[work.deployment_id] = leave(
                record, (work.session_id,), self.now, until=work.until
            )

    # What happens.

    def happens(self, session: str, event: Event) -> None:
        outcome = step(self.sessions.get(session), event, self.now)
        if outcome.record is not None:
            self.sessions[session] = outcome.record
        if Effect.RELEASE in outcome.effects:
            self.giving_back.add(session)

    @rule(session=st.sampled_from("abcdef"))
    def connect(self, session: str) -> None:
        record = self.sessions.get(session)
        if record is not None and record.state is SessionState.READY:
            self.connected.add(session)

    @rule(session=st.sampled_from("abcdef"))
    def hear_of_connection(self, session: str) -> None:
        if session in self.connected:
            self.happens(session, Connected())

    @rule(session=st.sampled_from("abcdef"))
    def disconnect(self, session: str) -> None:
        if session in self.connected:
            self.connected.discard(session)
            self.happens(session, Left())

    @rule(session=st.sampled_from("abcdef"))
    def give_up(self, session: str) -> None:
        self.happens(session, GivenUp("deadline", "m"))

    @rule(session=st.sampled_from("abcdef"))
    def deadline(self, session: str) -> None:
        self.happens(session, DeadlinePassed(session in self.connected))

    @rule(seconds=st.sampled_from([1.0, 20.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.giving_back)
    @rule(data=st.data(), crash=st.booleans())
    def give_back(self, data: st.DataObject, crash: bool) -> None:
        session = data.draw(st.sampled_from(sorted(self.giving_back)))
        self.giving_back.discard(session)
        record = self.sessions[session]
        if record.deployment_id:
            where = self.deployments[record.deployment_id]
            self.deployments[where.id] = leave(where, (session,), self.now)
        if not crash:
            self.happens(session, Released())

    @rule()
    def reconcile(self) -> None:
        """What the reconciler does, at whatever moment."""
        for record in list(self.deployments.values()):
            for member, until in stale_seats(record, self.sessions, self.now, slack=1.0).items():
                self.deployments[record.id] = leave(
                    self.deployments[record.id], (member,), self.now, until=until
                )
        for session, known in self.sessions.items():
            if known.state is SessionState.CLOSING:
                self.giving_back.add(session)

    @rule(where=st.sampled_from(["d1", "d2"]))
    def server_dies(self, where: str) -> None:
        """Confirmed gone: its sessions end; another one is started in its place under another name's record."""
        for session in list(self.deployments[where].seats):
            self.happens(session, ServerGone(where, "dead"))
            self.connected.discard(session)

    # What must always hold.

    @invariant()
    def no_server_is_overfull(self) -> None:
        for record in self.deployments.values():
            assert len(record.seats) <= record.capacity

    @invariant()
    def who_may_play_has_a_seat(self) -> None:
        for session, record in self.sessions.items():
            for where in self.deployments.values():
                if holds_seat(record, where.id):
                    assert session in where.seats, f"{session} plays on {where.id} without a seat"

    def teardown(self) -> None:
        """When all is over, nothing is left."""
        self.connected.clear()
        self.now += 1000
        for session, record in list(self.sessions.items()):
            if record.state is SessionState.ACTIVE:
                self.happens(session, Left())
            self.happens(session, DeadlinePassed(False))
        self.reconcile()
        for session in sorted(self.giving_back):
            record = self.sessions[session]
            if record.deployment_id:
                where = self.deployments[record.deployment_id]
                self.deployments[where.id] = leave(where, (session,), self.now)
            self.happens(session, Released())
        self.reconcile()
        assert all(record.state is SessionState.GONE for record in self.sessions.values())
        assert all(not record.seats for record in self.deployments.values())


TestMatchmakers = Matchmakers.TestCase
TestMatchmakers.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
