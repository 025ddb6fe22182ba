"""The waiting line by itself: addresses take turns, whatever anybody does."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_matchmaker.seats.allocation_request import AllocationRequest
from tipoff_matchmaker.seats.waiting_line import Waiter, WaitingLine

A, B, C = "203.0.113.1", "203.0.113.2", "203.0.113.3"


def wants(client_ip: str = "", members: int = 1, name: str = "m") -> AllocationRequest:
    names = tuple(f"{name}{n}" for n in range(members))
    return AllocationRequest(names[0], names, "arena", "1", (client_ip,) if client_ip else ())


def served(line: WaitingLine) -> list[str]:
    """The addresses of all, in the order in which they are served."""
    order = []
    while line.first is not None:
        order.append((line.pop().allocation.client_ips or ("",))[0])
    return order


@pytest.mark.row(67)
def test_addresses_take_turns() -> None:
    """One that asked five times before the others came has one turn before each of theirs."""
    line = WaitingLine()
    for address in (A, A, A, A, A, B, C, B):
        line.enter(wants(address), 0.0)
    assert served(line) == [A, B, C, A, B, A, A, A]


@pytest.mark.row(67)
def test_a_household_of_ipv6_takes_one_turn() -> None:
    """A /64 is one address, however many of its addresses ask."""
    line = WaitingLine()
    for n in range(4):
        line.enter(wants(f"2001:db8::{n:x}"), 0.0)
    line.enter(wants("2001:db8:0:1::1"), 0.0)
    assert served(line)[:2] == ["2001:db8::0", "2001:db8:0:1::1"]


def test_requests_without_an_address_and_from_loopback_are_served_as_they_come() -> None:
    """bevygap's clients may have none; they are not taken for one."""
    line = WaitingLine()
    waiters = [line.enter(wants(address), 0.0) for address in ("", "127.0.0.1", "", "::1", "127.0.0.1")]
    assert [line.pop() for _ in waiters] == waiters


@pytest.mark.row(67)
def test_a_parked_address_waits_aside_and_keeps_its_turn() -> None:
    """The others go on; when it may, it comes before those that came later."""
    line = WaitingLine()
    for address in (A, A, B, C):
        line.enter(wants(address), 0.0)
    assert line.park(7.0)
    assert line.pop().allocation.client_ips == (B,)
    line.enter(wants(A), 0.0)
    assert line.unpark("203.0.113.1")
    assert not line.unpark("203.0.113.1")
    assert served(line) == [A, C, A, A]


def test_a_parked_address_counts_the_time_until_it_gets_a_seat() -> None:
    """Looking again in between does not begin the time anew."""
    line = WaitingLine()
    waiter = line.enter(wants(A), 0.0)
    line.enter(wants(A), 0.0)
    assert line.parked_since(waiter) is None
    assert line.park(7.0)
    line.unpark(A)
    assert not line.park(9.0)
    assert line.parked_since(waiter) == 7.0
    line.unpark(A)
    line.pop()
    assert line.park(11.0)


def test_an_address_counts_for_the_seats_it_may_take() -> None:
    """What a fleet is planned for: the players that could get seats."""
    line = WaitingLine()
    for _ in range(10):
        line.enter(wants(A, 2), 0.0)
    for _ in range(3):
        line.enter(wants(), 0.0)
    assert line.players == 23
    assert line.players_within({A: 8}.__getitem__) == 11


class Model:
    """What happened to a line, and who waits in it, by plain lists."""

    def __init__(self) -> None:
        self.line = WaitingLine()
        self.inside: list[Waiter] = []
        self.popped: list[Waiter] = []
        self.turns_left: dict[Waiter, Counter[object]] = {}
        """For the first waiter of each address: how often each other address may still be served before it. Once, and
        once more for each turn that was given before and could not be used: those put back keep theirs."""
        self.returned: set[Waiter] = set()

    def of(self, key: object) -> list[Waiter]:
        return sorted(w for w in self.inside if w.queue_key == key)

    def enter(self, address: str, members: int) -> None:
        waiter = self.line.enter(wants(address, members), 0.0)
        self.inside.append(waiter)
        if self.of(waiter.queue_key) == [waiter]:
            self.turns_left[waiter] = Counter(w.queue_key for w in self.returned if w in self.inside)

    def pop(self) -> None:
        first = self.line.first
        assert (first is None) == (not self.inside)
        if first is None:
            return
        assert self.line.position(first) == 1
        assert first is self.of(first.queue_key)[0], "within an address, the first comes first"
        assert self.line.pop() is first
        self.inside.remove(first)
        self.popped.append(first)
        self.turns_left.pop(first, None)
        for waiter, others in self.turns_left.items():
            if waiter in self.inside:
                others[first.queue_key] -= 1
                assert others[first.queue_key] >= -1, "no address has two turns to one"

    def put_back(self, at: int) -> None:
        if self.popped:
            waiter = self.popped.pop(at % len(self.popped))
            self.line.put_back(waiter)
            self.inside.append(waiter)
            self.returned.add(waiter)
            for others in self.turns_left.values():
                others[waiter.queue_key] += 1

    def remove(self, at: int) -> None:
        if self.inside:
            waiter = self.inside.pop(at % len(self.inside))
            self.line.remove(waiter)
            self.line.remove(waiter)

    def check(self) -> None:
        assert len(self.line) == len(self.inside)
        assert self.line.players == sum(len(w.allocation.members) for w in self.inside)
        for waiter in self.inside:
            assert 1 <= self.line.position(waiter) <= len(self.inside)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.sampled_from(["", A, A, A, B, C, "2001:db8::1"]), st.integers(1, 3)),
        st.tuples(st.just("pop")),
        st.tuples(st.just("put_back"), st.integers(0, 9)),
        st.tuples(st.just("remove"), st.integers(0, 9)),
    ),
    max_size=60,
)


@pytest.mark.row(67)
@given(STEPS)
def test_whatever_happens_no_address_has_two_turns_while_another_waits(steps: list[tuple[str, ...]]) -> None:
    """Parties stay whole, nobody is lost or served twice, and each address keeps its own order."""
    model = Model()
    for name, *arguments in steps:
        getattr(model, name)(*arguments)
        model.check()
    while model.inside:
        model.pop()
    assert model.line.first is None


@given(st.lists(st.sampled_from(["", A, B, C]), max_size=40), st.data())
def test_those_put_back_are_served_as_if_they_had_never_been_away(
    addresses: list[str], data: st.DataObject
) -> None:
    """In whatever order they return."""
    straight, disturbed = WaitingLine(), WaitingLine()
    for address in addresses:
        straight.enter(wants(address), 0.0)
        disturbed.enter(wants(address), 0.0)
    taken = [disturbed.pop() for _ in range(data.draw(st.integers(0, len(addresses))))]
    for waiter in data.draw(st.permutations(taken)):
        disturbed.put_back(waiter)
    expected = [straight.pop().number for _ in addresses]
    assert [disturbed.pop().number for _ in addresses] == expected


@given(st.lists(st.sampled_from([A, B, C]), max_size=30), st.data())
def test_leaving_costs_an_address_no_turn(addresses: list[str], data: st.DataObject) -> None:
    """Everybody who stays is served, and the first round has one of each address."""
    line = WaitingLine()
    waiters = [line.enter(wants(address), 0.0) for address in addresses]
    leaving = data.draw(st.sets(st.sampled_from(waiters))) if waiters else set()
    for waiter in leaving:
        line.remove(waiter)
    staying = Counter(w.allocation.client_ips[0] for w in waiters if w not in leaving)
    order = served(line)
    assert Counter(order) == staying
    assert set(order[: len(staying)]) == set(staying)
