"""The session state machine: every transition, and what holds for any sequence of events."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_matchmaker.seats.rules import holds_seat
from tipoff_matchmaker.sessions.state_machine import (
    AskedAgain,
    Connected,
    DeadlinePassed,
    Effect,
    Ended,
    Event,
    GivenUp,
    Left,
    Released,
    Resumed,
    SeatFound,
    ServerGone,
    StartFailed,
    Step,
    TakenOver,
    is_open,
    step,
)
from tipoff_shared.records import SessionRecord, SessionState

S = SessionState
REQUESTED = SessionRecord("s1", S.REQUESTED, "arena", "1", "7", "m1", created_at=0.0, deadline=10.0)
READY = msgspec.structs.replace(
    REQUESTED, state=S.READY, deployment_id="d1", boot_id="b1", generation=1, deadline=70.0
)
ACTIVE = msgspec.structs.replace(READY, state=S.ACTIVE, deadline=0.0)
CLOSING = msgspec.structs.replace(ACTIVE, state=S.CLOSING)
GONE = msgspec.structs.replace(CLOSING, state=S.GONE)
ALL = (None, REQUESTED, READY, ACTIVE, CLOSING, GONE)
ORDER = {S.REQUESTED: 0, S.READY: 1, S.ACTIVE: 2, S.CLOSING: 3, S.GONE: 4}


@pytest.mark.parametrize(
    ("record", "event", "now", "state", "effects"),
    [
        (REQUESTED, SeatFound("d1", "b1", 70.0), 5, S.READY, ()),
        (REQUESTED, DeadlinePassed(False), 9.9, None, ()),
        (REQUESTED, DeadlinePassed(False), 10, S.CLOSING, (Effect.RELEASE,)),
        (REQUESTED, GivenUp("no", "m1"), 5, S.CLOSING, (Effect.RELEASE,)),
        (REQUESTED, GivenUp("no", "m2"), 5, None, ()),
        (REQUESTED, Ended("no"), 5, S.CLOSING, (Effect.RELEASE,)),
        (REQUESTED, StartFailed("no"), 5, S.REQUESTED, ()),
        (REQUESTED, TakenOver("m2", "m1"), 5, S.REQUESTED, ()),
        (REQUESTED, TakenOver("m3", "m2"), 5, None, ()),
        (REQUESTED, TakenOver("m1", "m1", 99.0), 5, S.REQUESTED, ()),
        (REQUESTED, TakenOver("m1", "m1"), 5, None, ()),
        (READY, Connected(), 5, S.ACTIVE, (Effect.CLAIMED,)),
        (READY, DeadlinePassed(True), 99, S.ACTIVE, (Effect.CLAIMED,)),
        (READY, DeadlinePassed(False), 69, None, ()),
        (READY, DeadlinePassed(False), 70, S.CLOSING, (Effect.RELEASE,)),
        (READY, AskedAgain(80.0), 5, S.READY, ()),
        (READY, AskedAgain(60.0), 5, None, ()),
        (READY, Left(), 5, S.CLOSING, (Effect.RELEASE,)),
        (READY, SeatFound("d2", "b2", 70.0), 5, None, ()),
        (READY, GivenUp("too late", "m1"), 5, None, ()),
        (READY, ServerGone("d1", "dead"), 5, S.CLOSING, (Effect.RELEASE,)),
        (READY, ServerGone("d2", "dead"), 5, None, ()),
        (READY, ServerGone("d1", "restarted", living_boot="b1"), 5, None, ()),
        (READY, ServerGone("d1", "restarted", living_boot="b2"), 5, S.CLOSING, (Effect.RELEASE,)),
        (ACTIVE, Left(), 5, S.CLOSING, (Effect.RELEASE,)),
        (ACTIVE, DeadlinePassed(False), 999, None, ()),
        (ACTIVE, Ended("kicked"), 5, S.CLOSING, (Effect.RELEASE,)),
        (ACTIVE, AskedAgain(80.0), 5, None, ()),
        (CLOSING, Released(), 5, S.GONE, ()),
        (CLOSING, Connected(), 5, None, (Effect.KICK,)),
        (CLOSING, Left(), 5, None, (Effect.RELEASE,)),
        (CLOSING, SeatFound("d2", "b2", 70.0), 5, None, ()),
        (GONE, Connected(), 5, None, (Effect.KICK,)),
        (GONE, Left(), 5, None, ()),
        (None, Connected(), 5, None, (Effect.KICK,)),
        (None, Left(), 5, None, ()),
    ],
)
def test_each_transition(
    record: SessionRecord | None,
    event: Event,
    now: float,
    state: SessionState | None,
    effects: tuple[Effect, ...],
) -> None:
    """The table of the state machine."""
    outcome = step(record, event, now)
    assert (outcome.record.state if outcome.record else None) == state
    assert outcome.effects == effects


def test_a_token_without_a_boot_id_is_good_for_any_boot() -> None:
    """Servers that tell none (bevygap's) are not mistaken for restarted ones."""
    anyhow = msgspec.structs.replace(ACTIVE, boot_id="")
    assert step(anyhow, ServerGone("d1", "restarted", living_boot="b2"), 5).record is None


def test_a_failed_start_counts_an_attempt() -> None:
    """And keeps the reason, for whoever looks."""
    record = step(REQUESTED, StartFailed("exit 1"), 5).record
    assert record is not None
    assert (record.attempt, record.reason) == (2, "exit 1")


@pytest.mark.row(99)
@pytest.mark.parametrize("record", [READY, ACTIVE])
def test_a_player_who_comes_back_gets_the_next_generation(record: SessionRecord) -> None:
    """State, seat and client id stay; of two requests for the same generation one counts."""
    after = step(record, Resumed(record.generation + 1, 50.0), 5).record
    assert after == msgspec.structs.replace(record, generation=record.generation + 1)
    assert step(after, Resumed(record.generation + 1, 60.0), 5).record is None
    assert step(record, Resumed(record.generation + 2, 60.0), 5).record is None


@pytest.mark.row(99)
def test_a_seat_that_was_never_claimed_waits_for_the_token_of_who_asks_again() -> None:
    after = step(READY, Resumed(READY.generation + 1, READY.deadline + 9), 5).record
    assert after is not None
    assert after.deadline == READY.deadline + 9


@pytest.mark.row(99)
@pytest.mark.parametrize("state", [S.REQUESTED, S.CLOSING, S.GONE])
def test_without_a_seat_there_is_nothing_to_come_back_to(state: S) -> None:
    record = msgspec.structs.replace(ACTIVE, state=state)
    assert step(record, Resumed(record.generation + 1, 50.0), 5) == Step()


texts = st.sampled_from(["", "d1", "d2", "b1", "b2"])
times = st.floats(0, 200)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(SeatFound, st.sampled_from(["d1", "d2"]), texts, times),
    st.builds(AskedAgain, times),
    st.builds(Resumed, st.integers(0, 6), times),
    st.builds(StartFailed, texts),
    st.builds(TakenOver, st.sampled_from(["m1", "m2", ""]), st.sampled_from(["m1", "m2", ""]), times),
    st.builds(GivenUp, texts, st.sampled_from(["m1", "m2", ""])),
    st.just(Connected()),
    st.just(Left()),
    st.builds(DeadlinePassed, st.booleans()),
    st.builds(ServerGone, texts, texts, texts),
    st.builds(Ended, texts),
    st.just(Released()),
)


@given(st.lists(st.tuples(events, times), max_size=30))
def test_whatever_happens_a_session_only_moves_forward(story: list[tuple[Event, float]]) -> None:
    """No state is ever left backwards; id, game and client id never change; an ended session holds no seat."""
    record: SessionRecord = REQUESTED
    for event, now in story:
        outcome = step(record, event, now)
        if outcome.record is None:
            assert Effect.RELEASE not in outcome.effects or record.state is S.CLOSING
            continue
        after = outcome.record
        assert ORDER[after.state] >= ORDER[record.state]
        assert (after.id, after.game, after.version, after.client_id) == ("s1", "arena", "1", "7")
        assert after.generation - record.generation == (
            (record.state is S.REQUESTED and after.state is S.READY) or isinstance(event, Resumed)
        )
        assert after != record
        assert (after.state is S.CLOSING) == (Effect.RELEASE in outcome.effects)
        if not is_open(after):
            assert not holds_seat(after, after.deployment_id)
        record = after


@given(st.sampled_from(ALL), events, times)
def test_an_event_that_comes_twice_counts_once(
    record: SessionRecord | None, event: Event, now: float
) -> None:
    """Messages are delivered again; only the attempts that failed are counted each time."""
    first = step(record, event, now).record
    if first is None or isinstance(event, StartFailed):
        return
    assert step(first, event, now).record is None
