"""The merge of a request's attempts: what a player reads, when it asks again, and that it always ends."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_matchmaker_httpd.matchmaker.feedback import (
    ASK_AGAIN_AFTER,
    MAX_ATTEMPTS,
    MAX_BUFFERED,
    TIMER_TOLERANCE,
    Deadlines,
    FeedbackMerge,
    Kind,
    Presence,
    Publish,
)
from tipoff_shared.errors import Internal, NoServerInTime, TipoffError, Unavailable
from tipoff_shared.messages import ACKNOWLEDGED

READY = b'{"SessionReady":{"token":"t","ip":"1.2.3.4","port":5}}'
ACCEPTED = b'{"SessionRequestAccepted":"s1"}'
PROGRESS = b'{"ProgressReport":"soon"}'
SILENT = b'{"ProgressReport":"The matchmaker is silent: asking the others"}'
NOBODY = {"Status": "503"}
NOW = 100.0
DEADLINES = Deadlines(request=20, acknowledge=10, retry=2, silence=5, nats=1.5)


def asked(deadlines: Deadlines = DEADLINES) -> FeedbackMerge:
    """A request whose first attempt has been published at NOW."""
    merge = FeedbackMerge(deadlines, NOW, deadlines.retry)
    merge.ask(NOW)
    assert taken(merge) == [Publish(Kind.REQUEST, "1", deadlines.request)]
    return merge


def asked_twice() -> FeedbackMerge:
    """One with two attempts, since NATS went and came back."""
    merge = asked()
    merge.nats_is_back(NOW)
    assert [publish.attempt for publish in taken(merge)] == ["2"]
    return merge


def taken(merge: FeedbackMerge) -> list[Publish]:
    """What is to be published, taken out."""
    publishes = merge.publishes[:]
    merge.publishes.clear()
    return publishes


def wait(merge: FeedbackMerge) -> float:
    """Let the next time-out come; when it was."""
    due = merge.next_timeout()
    assert due is not None
    merge.timeout(due)
    return due


# What the player reads.


def test_attempts_are_merged() -> None:
    """One Acknowledged, one SessionRequestAccepted, the first SessionReady; then it is over."""
    merge = asked_twice()
    for attempt in ("1", "2"):
        merge.receive(ACKNOWLEDGED, None, attempt, NOW)
        merge.receive(ACCEPTED, None, attempt, NOW)
    merge.receive(READY, None, "2", NOW)
    merge.receive(READY, None, "1", NOW)
    assert list(merge.messages) == [ACKNOWLEDGED, ACCEPTED, READY]
    assert merge.ready
    assert merge.failure is None
    assert merge.ended
    assert merge.next_timeout() is None


def test_an_error_waits_for_the_other_attempts() -> None:
    """Only the last one alive can fail the request."""
    merge = asked_twice()
    for attempt in ("1", "2"):
        merge.receive(ACKNOWLEDGED, None, attempt, NOW)
    merge.receive(b'{"Error":[502,"first"]}', {"Retry-After": "3"}, "1", NOW)
    merge.receive(b"", None, "1", NOW)
    assert merge.failure is None
    merge.receive(b'{"Error":[404,"second"]}', {"Retry-After": "3"}, "2", NOW)
    assert list(merge.messages) == [ACKNOWLEDGED, b'{"Error":[404,"second"]}']
    assert merge.failure is not None
    assert (merge.failure.code, merge.failure.retry_after) == (404, 3.0)


@pytest.mark.parametrize(
    ("data", "headers", "expected"),
    [
        (b"", None, Internal),
        (b"", NOBODY, Unavailable),
        (b'{"Error":"text"}', None, Internal),
        (b'{"Error":[999,"x"]}', {"Retry-After": "soon"}, Internal),
        (b' {"Error": [408, "late"]}', None, NoServerInTime),
    ],
)
def test_every_end_is_a_typed_error(
    data: bytes, headers: dict[str, str] | None, expected: type[TipoffError]
) -> None:
    """Whatever a matchmaker sends last."""
    merge = asked()
    merge.receive(data, headers, "1", NOW)
    assert type(merge.failure) is expected


def test_what_no_client_reads_is_not_forwarded() -> None:
    """bevygap's client fails on text that it does not know."""
    merge = asked()
    for data in (b"hello", b'{"Unknown":1}', b"\xff", b"[]"):
        merge.receive(data, None, "1", NOW)
    merge.receive(
        b'{ "ProgressReport" : "soon" }', None, "1", NOW
    )  # another spelling of the same JSON is read
    merge.receive(READY, None, "1", NOW)
    assert list(merge.messages) == [PROGRESS, READY]


def test_progress_for_a_slow_reader_is_bounded() -> None:
    """What counts still arrives."""
    merge = asked()
    for _ in range(1000):
        merge.receive(PROGRESS, None, "1", NOW)
    merge.receive(READY, None, "1", NOW)
    assert len(merge.messages) == MAX_BUFFERED + 1
    assert merge.messages[-1] == READY


# When it asks again.


def test_without_a_sign_of_life_all_are_asked_again_and_again_then_it_gives_up() -> None:
    """Every two seconds, for ten; then the matchmakers hear that nobody waits."""
    merge = asked()
    times = [wait(merge) - NOW for _ in range(5)]
    assert times == [2, 4, 6, 8, 10]
    assert [(publish.kind, publish.attempt, publish.left) for publish in taken(merge)] == [
        (Kind.RETRY, "2", 18.0),
        (Kind.RETRY, "3", 16.0),
        (Kind.RETRY, "4", 14.0),
        (Kind.RETRY, "5", 12.0),
        (Kind.LEFT, "", 0.0),
    ]
    assert list(merge.messages) == [b'{"Error":[503,"no matchmaker answers"]}']


def test_one_that_falls_silent_is_asked_with_all_others() -> None:
    """The player is told; the time for a sign of life begins again."""
    merge = asked()
    merge.receive(ACKNOWLEDGED, None, "1", NOW + 1)
    assert wait(merge) == NOW + 1 + DEADLINES.silence
    assert [publish.kind for publish in taken(merge)] == [Kind.RETRY]
    assert list(merge.messages) == [ACKNOWLEDGED, SILENT]
    assert merge.next_timeout() == NOW + 1 + DEADLINES.silence + DEADLINES.retry


def test_the_deadline_holds_whatever_is_said() -> None:
    """Progress does not prolong it."""
    merge = asked()
    for second in range(20):
        merge.timeout(NOW + second)
        merge.receive(PROGRESS, None, "1", NOW + second)
    assert merge.next_timeout() == NOW + DEADLINES.request
    merge.timeout(NOW + DEADLINES.request - TIMER_TOLERANCE / 2)
    assert isinstance(merge.failure, NoServerInTime)
    assert [publish.kind for publish in taken(merge)] == [Kind.LEFT]


def test_a_timer_that_fires_early_changes_nothing() -> None:
    """A driver need not move its timer with each message."""
    merge = asked()
    merge.timeout(NOW + 1.9)
    assert not taken(merge)
    assert merge.next_timeout() == NOW + DEADLINES.retry


def test_while_matchmakers_come_back_nobody_listening_is_not_the_end() -> None:
    """After an outage of NATS; it asks again a moment later, while its patience lasts."""
    merge = asked()
    merge.nats_is_back(NOW)
    taken(merge)
    now, attempt = NOW, 2
    while not merge.ended:
        assert merge.receive(b"", NOBODY, str(attempt), now) is Presence.ABSENT
        if merge.ended:
            break
        assert merge.next_timeout() == now + ASK_AGAIN_AFTER
        now, attempt = wait(merge), attempt + 1
        assert [publish.kind for publish in taken(merge)] == [Kind.REQUEST]
    assert now == pytest.approx(NOW + DEADLINES.nats)
    assert isinstance(merge.failure, Unavailable)


def test_those_that_stop_hand_a_player_on_a_bounded_number_of_times() -> None:
    """Then the last one's error is the answer."""
    merge = asked()
    error, headers = b'{"Error":[503,"stopping"]}', {"Tipoff-Ask-Again": "1"}
    attempts = 1
    while not merge.ended:
        merge.receive(error, headers, str(attempts), NOW)
        attempts += len(taken(merge))
    assert attempts == MAX_ATTEMPTS
    assert list(merge.messages) == [error]


def test_an_answer_tells_of_the_matchmakers() -> None:
    """They answer; another than the first one answers; nobody listens."""
    assert asked().receive(ACKNOWLEDGED, None, "1", NOW) is Presence.ANSWERING
    assert asked_twice().receive(ACKNOWLEDGED, None, "2", NOW) is Presence.ONE_IS_DEAF
    assert asked().receive(b"", NOBODY, "1", NOW) is Presence.ABSENT
    assert asked().receive(PROGRESS, None, "1", NOW) is None


def test_a_player_who_leaves_is_told_once_and_gets_no_answer() -> None:
    """Nothing that comes later changes that; one that was never asked is not told."""
    merge = asked()
    for _ in range(2):
        merge.abandon()
        merge.receive(READY, None, "1", NOW)
    assert [publish.kind for publish in taken(merge)] == [Kind.LEFT]
    assert not merge.messages
    never = FeedbackMerge(DEADLINES, NOW, DEADLINES.retry)
    never.abandon()
    assert not taken(never)


# Whatever happens.

ATTEMPTS = st.sampled_from(["1", "2", "3", "4", "7", "x", ""])
HEADERS = st.one_of(
    st.none(),
    st.just(NOBODY),
    st.just({"Tipoff-Ask-Again": "1", "Retry-After": "1"}),
    st.dictionaries(
        st.sampled_from(["Status", "Retry-After", "Tipoff-Ask-Again", "X"]),
        st.sampled_from(["503", "100", "-1", "nan", "inf", "1e999", "soon", ""]),
    ),
)
LIKELY = st.sampled_from(
    [
        b"",
        ACKNOWLEDGED,
        ACCEPTED,
        PROGRESS,
        READY,
        b' {"SessionReady" : {"token":"t","ip":"1.2.3.4","port":5}}',
        b'{"Error":[404,"no"]}',
        b'{"Error":[503,"stopping"]}',
        b'{"Error":[99999999999999999999,"x"]}',
        b'{"Error":[503,"\\ud800"]}',
        b'{"ProgressReport":"\\ud800"}',
        b' {"Error":[-1,"x"]}',
    ]
)
TAGS = st.sampled_from(["SessionReady", "Error", "ProgressReport", "SessionRequestAccepted", "Acknowledged"])
JSON = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=20)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TAGS, inner, max_size=2)),
    max_leaves=8,
)
DATA = st.one_of(LIKELY, LIKELY, JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["receive"] * 8 + ["timeout", "wait", "wait", "back", "read", "fail", "abandon"]),
        st.floats(0.0, 3.0),
        DATA,
        HEADERS,
        ATTEMPTS,
    ),
    max_size=60,
)
TIMES = st.floats(0.05, 8.0)


def kind_of(message: bytes) -> str:
    """By its first bytes: what a matchmaker says is passed on word for word."""
    for kind in ("SessionReady", "Error", "ProgressReport", "SessionRequestAccepted"):
        if message.startswith(f'{{"{kind}"'.encode()):
            return kind
    assert message == ACKNOWLEDGED, message
    return "Acknowledged"


@settings(max_examples=500, deadline=None)
@given(st.builds(Deadlines, st.floats(0.05, 30.0), TIMES, TIMES, TIMES, TIMES), TIMES, STEPS)
@pytest.mark.slow
def test_every_request_ends_in_time_with_one_answer(
    deadlines: Deadlines, first_retry: float, steps: list[tuple[str, float, bytes, Any, str]]
) -> None:
    """No event raises; the last message, and no other, is the answer, unless the player left before it."""
    merge = FeedbackMerge(deadlines, NOW, first_retry)
    merge.ask(NOW)
    now, read, published = NOW, [], []
    abandoned = failed = False

    def time_passes(until: float) -> float:
        """The driver: each time-out that is due before `until`."""
        at = now
        while (due := merge.next_timeout()) is not None and due <= until:
            at = max(at, due)
            merge.timeout(at)
            following = merge.next_timeout()
            assert following is None or following > at, "a timer that fires for ever"
        return max(at, until)

    for event, seconds, data, headers, attempt in steps:
        ended_before = merge.ended
        now = time_passes(now + seconds)
        held = len(merge.messages)
        if event == "receive":
            merge.receive(data, headers, attempt, now)
        elif event == "timeout":
            merge.timeout(now)
        elif event == "wait":
            now = time_passes(merge.next_timeout() or now)
        elif event == "back":
            merge.nats_is_back(now)
        elif event == "read" and merge.messages:
            read.append(merge.messages.popleft())
        elif event == "fail":
            failed = failed or not merge.ended
            merge.fail(Unavailable("NATS is away"))
        elif event == "abandon":
            abandoned = abandoned or not merge.ended
            merge.abandon()
        if ended_before:
            assert len(merge.messages) <= held, "a message after the end"
        published += taken(merge)
    now = time_passes(NOW + deadlines.request)
    published += taken(merge)
    read += merge.messages

    assert merge.ended
    assert merge.next_timeout() is None
    kinds = [kind_of(message) for message in read]
    answers = [kind for kind in kinds if kind in ("SessionReady", "Error")]
    assert len(answers) == (0 if abandoned else 1)
    assert abandoned or kinds[-1] == answers[0]
    assert merge.ready is (not abandoned and answers == ["SessionReady"])
    assert (merge.failure is None) is (abandoned or merge.ready)
    if merge.failure is not None:
        code, text = json.loads(read[-1])["Error"]
        assert (merge.failure.code, merge.failure.message) == (code, text)
        assert not failed or code == 503
    assert kinds.count("Acknowledged") <= 1
    assert kinds.count("SessionRequestAccepted") <= 1
    attempts = [publish.attempt for publish in published if publish.kind is not Kind.LEFT]
    assert attempts == [str(number) for number in range(1, len(attempts) + 1)]
    assert all(-1e-6 <= publish.left <= deadlines.request + 1e-6 for publish in published)
    left = [publish.kind for publish in published].count(Kind.LEFT)
    assert left <= 1
    assert left or not abandoned
    assert not left or not merge.ready
