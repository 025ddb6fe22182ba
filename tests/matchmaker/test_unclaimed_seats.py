"""The account of unclaimed seats by itself: shares, what ends a hold, and shorter holds for those who do not claim."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.matchmaker.world import ARENA
from tipoff_matchmaker.seats.unclaimed import (
    FORGIVEN_AFTER,
    UnclaimedSeats,
    most_unclaimed,
    share_address,
)
from tipoff_shared.records import NOT_CLAIMED, SessionRecord, SessionState

A, B = "203.0.113.1", "203.0.113.2"
GAME = ARENA.key
NOW = 1_000_000.0


def account(most: int = 3, free_misses: int = 2, least_hold: float = 10.0) -> UnclaimedSeats:
    return UnclaimedSeats({GAME: most}.get, free_misses=free_misses, least_hold=least_hold)


def record(session_id: str, state: SessionState, address: str = A, **more: object) -> SessionRecord:
    made = SessionRecord(session_id, state, *GAME, "7", "m1", NOW, deadline=NOW + 60, client_ip=address)
    return msgspec.structs.replace(made, **more)


def miss(seats: UnclaimedSeats, count: int, now: float = NOW, address: str = A) -> None:
    """So many seats of the address expire."""
    for n in range(count):
        seats.learn(record(f"miss{n}", SessionState.READY, address, deadline=now), now)
        seats.learn(record(f"miss{n}", SessionState.CLOSING, address, reason=NOT_CLAIMED), now)


@pytest.mark.row(67)
def test_an_address_has_its_share_and_no_more() -> None:
    """Others have theirs; a seat that is claimed, given back or expired counts no longer."""
    seats = account()
    for n in range(3):
        assert seats.may_take(A, GAME, 1, NOW)
        seats.hold(f"s{n}", A, GAME, NOW + 60)
    assert not seats.may_take(A, GAME, 1, NOW)
    assert seats.may_take(B, GAME, 3, NOW)
    assert seats.drop("s0") == (A, GAME)
    assert seats.room(A, GAME, NOW) == 1
    assert seats.learn(record("s1", SessionState.ACTIVE), NOW) == (A, GAME)
    assert seats.room(A, GAME, NOW) == 2
    assert seats.room(A, GAME, NOW + 70) == 3
    assert len(seats) == 0


def test_a_party_larger_than_the_share_stays_whole() -> None:
    """It gets its seats when its address holds no other."""
    seats = account(most=3)
    assert seats.may_take(A, GAME, 8, NOW)
    seats.hold("s", A, GAME, NOW + 60)
    assert not seats.may_take(A, GAME, 8, NOW)
    assert seats.may_take(A, GAME, 2, NOW)


def test_no_address_no_share() -> None:
    """Loopback, no address, or none that can be read: each stands for itself."""
    seats = account(most=1)
    for n, address in enumerate(("", "127.0.0.1", "::1", "not an address", "0.0.0.0")):  # nothing is bound
        seats.learn(record(f"s{n}", SessionState.READY, address), NOW)
        assert seats.may_take(share_address(address), GAME, 1, NOW)
    assert len(seats) == 0


def test_ipv6_counts_by_its_64() -> None:
    """Mapped IPv4 is IPv4."""
    assert (
        share_address("2001:db8::1") == share_address("2001:db8::ffff:1") != share_address("2001:db8:0:1::1")
    )
    assert share_address("::ffff:203.0.113.1") == A


def test_the_share_is_at_most_half_of_the_seats_there_can_be() -> None:
    """So one address never takes them all, even the first time."""
    assert most_unclaimed(ARENA, 32) == 8
    assert most_unclaimed(msgspec.structs.replace(ARENA, seats=1, max_deployments=1), 32) == 1
    assert most_unclaimed(msgspec.structs.replace(ARENA, seats=1000), 32) == 32
    assert most_unclaimed(ARENA, 0) == 0


def test_without_a_limit_nothing_is_counted() -> None:
    """0 turns it off, shorter holds too."""
    seats = account(most=0)
    miss(seats, 50)
    assert seats.may_take(A, GAME, 1000, NOW)
    assert seats.hold_factor(A, 60, NOW) == 1
    assert len(seats) == 0


@pytest.mark.row(67)
def test_who_does_not_claim_holds_for_a_shorter_time() -> None:
    """The first misses are free; then the hold halves, down to the least one; claims and time make good for it."""
    seats = account(free_misses=2)
    miss(seats, 2)
    assert seats.hold_factor(A, 60, NOW) == 1
    miss(seats, 1)
    assert seats.hold_factor(A, 60, NOW) == 0.5
    miss(seats, 40)
    assert seats.hold_factor(A, 60, NOW) == pytest.approx(1 / 6)
    assert seats.hold_factor(B, 60, NOW) == 1
    assert seats.hold_factor(A, 60, NOW + FORGIVEN_AFTER + 1) == 1
    for n in range(41):
        seats.learn(record(f"s{n}", SessionState.READY), NOW)
        seats.learn(record(f"s{n}", SessionState.ACTIVE), NOW)
    assert seats.hold_factor(A, 60, NOW) == 1


@pytest.mark.parametrize("reason", ["the player left", "the server is gone", "an operator ended the session"])
def test_a_session_that_ends_for_another_reason_is_no_miss(reason: str) -> None:
    """The player may not have had the chance."""
    seats = account(free_misses=0)
    seats.learn(record("s", SessionState.READY), NOW)
    seats.learn(record("s", SessionState.GONE, reason=reason), NOW)
    assert seats.hold_factor(A, 60, NOW) == 1


def test_a_session_is_missed_once_however_often_its_end_is_listed() -> None:
    """An ended session's record stays for two minutes."""
    seats = account(free_misses=1)
    miss(seats, 1)
    for _ in range(10):
        seats.learn(record("miss0", SessionState.GONE, reason=NOT_CLAIMED), NOW)
    assert seats.hold_factor(A, 60, NOW) == 1


STATES = st.sampled_from(list(SessionState))
EVENTS = st.lists(
    st.tuples(
        st.integers(0, 12), st.sampled_from([A, B, "", "::1"]), STATES, st.floats(-100, 100), st.floats(0, 30)
    ),
    max_size=80,
)


@given(EVENTS)
def test_whatever_comes_in_whatever_order_the_account_is_right(
    events: list[tuple[int, str, SessionState, float, float]],
) -> None:
    """It holds exactly the sessions last seen ready and not expired, of addresses that have a share."""
    seats = account(most=4)
    ready: dict[str, tuple[str, float]] = {}
    now = NOW
    for number, _, state, deadline, later in events:
        now += later
        name = f"s{number}"
        address = (A, B, "", "::1")[number % 4]  # a session's address never changes
        seats.learn(record(name, state, address, deadline=now + deadline, reason=NOT_CLAIMED), now)
        if state is SessionState.READY:
            if deadline > -5:
                ready[name] = (address, now + deadline)
        elif state is not SessionState.REQUESTED:
            ready.pop(name, None)
        for one in (A, B):
            expected = {n for n, (at, until) in ready.items() if at == one and until + 5 > now}
            assert seats.room(one, GAME, now) == max(0, 4 - len(expected))
            assert set(seats.sessions_of(one, GAME)) == expected
            assert 0 < seats.hold_factor(one, 60, now) <= 1
