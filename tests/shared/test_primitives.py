"""What the primitives promise: retries, single flights, token buckets, gathering, short texts."""

from __future__ import annotations

import ast
import asyncio
import math
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from tipoff_shared.errors import Unavailable
from tipoff_shared.primitives import retry as retry_module
from tipoff_shared.primitives.retry import Backoff, backoff, retry, run_forever
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.text import describe, one_line
from tipoff_shared.primitives.token_bucket import TokenBucket, TokenBuckets
from tipoff_shared.primitives.waiting import cancel_all, gather_then_raise, wait_for_any, wait_for_event

# Texts.


def test_the_text_of_an_exception_is_never_empty() -> None:
    """`TimeoutError()` has no text: its type says what happened."""
    assert describe(ValueError("no such port")) == "no such port"
    assert describe(TimeoutError()) == "TimeoutError"
    assert describe(ValueError(" \n")) == "ValueError"


def test_one_line_is_one_line_of_bounded_length() -> None:
    """White space is one space; a cut is visible, and within the limit."""
    assert one_line(" a\n\tb  c ") == "a b c"
    assert one_line("x" * 200) == "x" * 200
    assert one_line("x" * 201) == "x" * 199 + "…"
    assert one_line("abcdef", 4) == "abc…"


# Retries.


def test_pauses_double_with_jitter_up_to_the_longest() -> None:
    """Half to all of the doubled pause; at least what the other side asks for, up to a minute."""
    for attempt, whole in ((1, 0.2), (2, 0.4), (3, 0.8), (6, 5.0), (1000, 5.0)):
        assert whole / 2 <= backoff(attempt, 0.2) <= whole
    assert backoff(1, 0.2, longest=0.1) <= 0.1
    assert backoff(1, 0.2, retry_after=7) == 7
    assert backoff(1, 0.2, retry_after=3600) == 60


def test_a_success_makes_pauses_short_again() -> None:
    pauses = Backoff(1.0, longest=100.0)
    for _ in range(5):
        pauses.failed()
    assert 8.0 <= pauses.pause() <= 16.0
    pauses.reset()
    pauses.failed()
    assert pauses.pause() <= 1.0


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; none of them takes time."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def no_time(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(retry_module.asyncio, "sleep", no_time)
    return pauses


class Enough(Exception):
    """Ends a loop that would run for ever."""


async def test_a_loop_begins_again_after_failures_and_ends(slept: list[float]) -> None:
    """Both count for the pause; progress makes it short again; `on_failure` hears of failures only."""
    runs = 0
    heard: list[tuple[int, str]] = []

    async def work(pauses: Backoff) -> None:
        nonlocal runs
        runs += 1
        if runs == 2:
            return  # the stream ended
        if runs == 4:
            pauses.reset()
        if runs == 5:
            raise Enough
        raise Unavailable(f"run {runs}")

    with pytest.raises(Enough):
        await run_forever(
            work,
            first_pause=1.0,
            longest_pause=100.0,
            retry_on=Unavailable,
            on_failure=lambda number, exc: heard.append((number, str(exc))),
        )
    assert heard == [(1, "run 1"), (3, "run 3"), (1, "run 4")]
    assert [round(math.log2(pause) + 0.5) for pause in slept] == [0, 1, 2, 0]


async def test_on_failure_may_end_a_loop(slept: list[float]) -> None:
    """Where trying again cannot help."""

    async def work(_: Backoff) -> None:
        raise Unavailable("not permitted")

    def give_up(_: int, exc: Exception) -> None:
        raise Enough from exc

    with pytest.raises(Enough):
        await run_forever(work, first_pause=1.0, retry_on=Unavailable, on_failure=give_up)
    assert slept == []


async def test_a_loop_ends_when_it_is_cancelled() -> None:
    """Also in its pause."""
    failed = asyncio.Event()

    async def work(_: Backoff) -> None:
        failed.set()
        raise Unavailable("away")

    loop = asyncio.create_task(run_forever(work, first_pause=60.0, retry_on=(Unavailable,)))
    await failed.wait()
    loop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loop


async def test_a_call_is_tried_again_only_where_that_may_help(slept: list[float]) -> None:
    """Up to `tries` times, and only for errors that `retry_if` accepts; the last error is raised."""
    errors: list[Exception] = [Unavailable("one"), Unavailable("two", retry_after=30), Unavailable("three")]
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        if errors:
            raise errors.pop(0)
        return "done"

    heard: list[tuple[int, str]] = []

    def hear(number: int, exc: Exception) -> None:
        heard.append((number, str(exc)))

    def may_help(exc: Exception) -> bool:
        return isinstance(exc, Unavailable)

    with pytest.raises(Unavailable, match="three"):
        await retry(call, tries=3, first_pause=0.5, retry_if=may_help, on_failure=hear)
    assert (calls, heard) == (3, [(1, "one"), (2, "two")])
    assert 0.25 <= slept[0] <= 1.0
    assert 30.0 <= slept[1] <= 30.5
    assert await retry(call, tries=3, first_pause=0.5, retry_if=may_help) == "done"
    errors = [ValueError("bad"), Unavailable("never seen")]
    with pytest.raises(ValueError, match="bad"):
        await retry(call, tries=3, first_pause=0.5, retry_if=may_help)


# Waiting.


async def test_gathering_raises_the_first_error_after_all_have_ended() -> None:
    """Nothing goes on behind the caller's back."""
    go, ended = asyncio.Event(), list[str]()

    async def slow(name: str) -> str:
        await go.wait()
        ended.append(name)
        return name

    async def fails(text: str) -> str:
        go.set()
        raise ValueError(text)

    with pytest.raises(ValueError, match="first"):
        await gather_then_raise(slow("a"), fails("first"), fails("second"), slow("b"))
    assert sorted(ended) == ["a", "b"]
    assert await gather_then_raise(slow("c"), slow("d")) == ["c", "d"]
    assert await gather_then_raise() == []


async def test_gathering_may_be_bounded() -> None:
    """At most `at_once` run at one time; those that never had their turn are closed when it is cancelled."""
    running, most, go, three_run = 0, 0, asyncio.Event(), asyncio.Event()

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            three_run.set()
        try:
            await go.wait()
        finally:
            running -= 1

    async def ten() -> None:
        await gather_then_raise(*(work() for _ in range(10)), at_once=3)

    gathering = asyncio.create_task(ten())
    await three_run.wait()
    go.set()
    await gathering
    assert most == 3
    go.clear()
    three_run.clear()
    gathering = asyncio.create_task(ten())
    await three_run.wait()
    gathering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gathering
    assert running == 0


async def test_an_event_is_waited_for_in_bounds() -> None:
    """Whether it is set; the first of several; and no time-out without a number."""
    one, other = asyncio.Event(), asyncio.Event()
    assert not await wait_for_event(one, 0.001)
    waiting = asyncio.create_task(wait_for_any(one, other))
    await asyncio.sleep(0)
    assert not waiting.done()
    other.set()
    await waiting
    await wait_for_any(one, other)
    assert await wait_for_event(other, None)
    assert await wait_for_event(other, 0)


async def test_tasks_that_swallow_a_cancellation_are_cancelled_again() -> None:
    """And those that swallow every one are returned in time."""
    begun, stubborn = asyncio.Event(), True

    async def swallow(times: int) -> None:
        begun.set()
        while times and stubborn:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                times -= 1

    once = asyncio.create_task(swallow(1))
    always = asyncio.create_task(swallow(10**6))
    await begun.wait()
    await asyncio.sleep(0)
    assert await cancel_all([once, always], 0.05) == {always}
    stubborn = False
    assert await cancel_all([once, always], 5) == set()


# Single flights.


class Calls:
    """A call that waits for `go`, and counts."""

    def __init__(self) -> None:
        self.count = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.count += 1
        number = self.count
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return number


async def several_turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_those_who_ask_at_one_time_share_one_call() -> None:
    """Per key; afterwards the next one is made."""
    flights, calls, others = SingleFlight[str, int]("t"), Calls(), Calls()
    waiters = [asyncio.create_task(flights.run("a", calls)) for _ in range(5)]
    other = asyncio.create_task(flights.run("b", others))
    await several_turns()
    assert "a" in flights
    assert len(flights) == 2
    calls.go.set()
    others.go.set()
    assert await asyncio.gather(*waiters, other) == [1, 1, 1, 1, 1, 1]
    assert (calls.count, others.count, len(flights)) == (1, 1, 0)
    assert await flights.run("a", calls) == 2


async def test_every_waiter_gets_the_error() -> None:
    """And the next one asks again."""
    flights, calls = SingleFlight[str, int]("t"), Calls()
    calls.error = ValueError("no")
    calls.go.set()
    outcomes = await asyncio.gather(*(flights.run("a", calls) for _ in range(3)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["no"] * 3
    calls.error = None
    assert await flights.run("a", calls) == 2


async def test_a_waiter_that_leaves_stops_no_call() -> None:
    """Even the last one: the call goes to its end, and one who comes meanwhile shares it."""
    flights, calls = SingleFlight[str, int]("t"), Calls()
    waiter = asyncio.create_task(flights.run("a", calls))
    await several_turns()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert "a" in flights
    late = asyncio.create_task(flights.run("a", calls))
    await several_turns()
    calls.go.set()
    assert (await late, calls.count) == (1, 1)


async def test_a_fresh_call_begins_after_it_was_asked_for() -> None:
    """Those who come while one runs share the next one, which begins when that has ended."""
    flights, calls = SingleFlight[str, int]("t"), Calls()
    first = asyncio.create_task(flights.run_fresh("a", calls))
    await several_turns()
    later = [asyncio.create_task(flights.run_fresh("a", calls)) for _ in range(3)]
    joins = asyncio.create_task(flights.run("a", calls))
    await several_turns()
    assert calls.count == 1
    calls.go.set()
    assert await first == await joins == 1
    assert [await waiter for waiter in later] == [2, 2, 2]
    assert (calls.count, len(flights)) == (2, 0)


async def test_closing_cancels_calls_and_tells_their_waiters() -> None:
    """They get an error, not a cancellation that nobody asked for."""
    async with SingleFlight[str, int]("t") as flights:
        calls = Calls()
        waiters = [
            asyncio.create_task(flights.run("a", calls)),
            asyncio.create_task(flights.run_fresh("a", calls)),
        ]
        await several_turns()
    for waiter in waiters:
        with pytest.raises(Unavailable, match="stopping"):
            await waiter
    assert len(flights) == 0


async def test_calls_in_flight_are_bounded() -> None:
    """One more key is refused; one more who asks for the same is not."""
    flights, calls = SingleFlight[str, int]("t", limit=1), Calls()
    waiters = [asyncio.create_task(flights.run("a", calls)) for _ in range(2)]
    await several_turns()
    with pytest.raises(Unavailable, match="too many"):
        await flights.run("b", calls)
    calls.go.set()
    assert await asyncio.gather(*waiters) == [1, 1]


async def test_calls_may_belong_to_somebody_else() -> None:
    """Who begins them owns them; `start` does not wait, and finds the one in flight."""
    names: list[str] = []

    def begin(work: Coroutine[Any, Any, int], name: str) -> asyncio.Task[int]:
        names.append(name)
        return asyncio.create_task(work)

    flights, calls = SingleFlight[str, int]("end", begin=begin), Calls()
    task = flights.start("d1", calls)
    assert flights.start("d1", calls) is task
    calls.go.set()
    assert await task == 1
    assert names == ["end/d1"]


# Token buckets.


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    """Ten a second, three at once."""
    bucket = TokenBucket(10.0, 3.0)
    assert [bucket.take(100.0) for _ in range(4)] == [0.0, 0.0, 0.0, None]
    assert bucket.wait(100.0) == pytest.approx(0.1)
    assert bucket.wait(100.0, ahead=2) == pytest.approx(0.3)
    assert bucket.take(100.0, longest=0.05) is None
    assert bucket.take(100.0, longest=0.2) == pytest.approx(0.1)
    assert bucket.wait(100.0) == pytest.approx(0.2)
    bucket.give_back()
    assert bucket.wait(100.0) == pytest.approx(0.1)
    assert [bucket.take(200.0) for _ in range(4)] == [0.0, 0.0, 0.0, None]


def test_a_burst_is_exact_for_clocks_of_any_size() -> None:
    """No token is lost to rounding."""
    for now in (0.0, 1e5, 1.7e9):
        bucket = TokenBucket(0.7, 20.0)
        assert [bucket.take(now) for _ in range(21)] == [0.0] * 20 + [None]


def test_a_paused_bucket_gives_one_token_when_the_pause_ends() -> None:
    """The other side says when; a pause that ends before there would be a token changes nothing."""
    bucket = TokenBucket(10.0, 5.0)
    bucket.pause(3.0)
    assert bucket.wait(1.0) == pytest.approx(2.0)
    assert bucket.take(2.9) is None
    assert bucket.take(3.0) == 0.0
    assert bucket.take(3.0) is None
    bucket.pause(3.01)
    assert bucket.wait(3.0) == pytest.approx(0.1)
    bucket = TokenBucket(1.0)
    assert [bucket.take(0.0, longest=5.0) for _ in range(2)] == [0.0, 1.0]
    bucket.pause(10.0)
    assert bucket.wait(0.0) == pytest.approx(10.0)


def test_buckets_are_apart_and_bounded() -> None:
    """Each key has its own; the one used longest ago is forgotten."""
    buckets = TokenBuckets[str](1.0, 2.0, max_keys=2)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [0.0, 0.0, 1.0]
    assert buckets.take("a", 0.5) == pytest.approx(0.5)
    assert buckets.take("b", 0.5) == 0.0
    assert buckets.take("c", 0.5) == 0.0
    assert len(buckets) == 2
    assert buckets.take("a", 0.5) == 0.0  # forgotten, so it begins anew


def test_a_rate_of_zero_is_no_limit() -> None:
    buckets = TokenBuckets[str](0.0, 0.0)
    assert {buckets.take("a", 0.0) for _ in range(100)} == {buckets.reserve("a", 0.0)} == {0.0}
    assert len(buckets) == 0


def test_a_reserved_token_is_taken_in_any_case() -> None:
    """Whoever takes more than there is waits longer each time."""
    buckets = TokenBuckets[str](2.0, 1.0)
    assert [buckets.reserve("a", 7.0) for _ in range(3)] == [0.0, 0.5, 1.0]
    assert buckets.take("a", 7.0) == pytest.approx(1.5)


# Where they may be used.


def test_primitives_need_the_standard_library_only(source_tree: Path) -> None:
    """Game clients install them, without NATS, pydantic or anything else."""
    allowed = sys.stdlib_module_names | {"tipoff_shared.errors", "tipoff_shared.primitives"}
    for path in (source_tree / "shared/tipoff_shared/primitives").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
            for name in names:
                whole = ".".join(name.split(".")[:2])
                assert whole in allowed or name.split(".")[0] in allowed, f"{path.name} imports {name}"
