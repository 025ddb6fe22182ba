"""The circuit breaker's rules, and the guard around an orchestrator that uses them."""

from __future__ import annotations

import asyncio
import io
import itertools
import math
from collections.abc import AsyncIterator
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.polling import eventually
from tipoff.operate.status import print_orchestrators
from tipoff_matchmaker.errors import CircuitOpen
from tipoff_matchmaker.orchestrators.resilient import ResilientOrchestrator
from tipoff_matchmaker.orchestrators.retry import retried
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    GameUnavailable,
    NoCapacity,
    Orchestrator,
    OrchestratorError,
    OrchestratorUnavailable,
    Port,
    RunState,
)
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared.admin import OrchestratorStatus
from tipoff_shared.primitives.circuit_breaker import Breaker, BreakerState

SPEC = DeploySpec("arena-1", "arena", "1", 4)
BUSY = OrchestratorUnavailable("503", retryable=True)


def tripped(now: float = 0.0) -> Breaker:
    breaker = Breaker(threshold=3, first_pause=2, longest_pause=10)
    for _ in range(3):
        assert breaker.admit(now) == 0
        breaker.failed(now, "503")
    return breaker


def test_it_opens_after_failures_in_a_row() -> None:
    """Two of three change nothing; an answer in between begins the count anew."""
    breaker = Breaker(threshold=3)
    for _ in range(2):
        breaker.failed(0, "503")
    breaker.succeeded()
    for _ in range(2):
        breaker.failed(0, "503")
    assert breaker.state is BreakerState.CLOSED
    breaker.failed(0, "503")
    assert (breaker.state, breaker.last_error) == (BreakerState.OPEN, "503")


def test_after_the_pause_one_call_is_let_through() -> None:
    """And no second one before the first has ended."""
    breaker = tripped()
    assert breaker.admit(1.5) == 0.5
    assert breaker.admit(2) == 0
    assert breaker.admit(2) > 0


def test_pauses_grow_while_trials_fail_and_are_bounded() -> None:
    """2, 4, 8, 10, 10 seconds; then an answer, and it begins at 2 again."""
    breaker, now, pauses = tripped(), 0.0, []
    for _ in range(5):
        pauses.append(breaker.wait(now))
        now += breaker.wait(now)
        assert breaker.admit(now) == 0
        breaker.failed(now, "503")
    assert pauses == [2, 4, 8, 10, 10]
    breaker.admit(now + 10)
    breaker.succeeded()
    assert (breaker.state, breaker.admit(now + 10)) == (BreakerState.CLOSED, 0)
    for _ in range(3):
        breaker.failed(0, "503")
    assert breaker.wait(0) == 2


def test_a_trial_whose_asker_has_gone_is_given_to_the_next() -> None:
    breaker = tripped()
    assert breaker.admit(2) == 0
    breaker.abandoned(3)
    assert breaker.admit(3) == 0


def test_what_the_other_side_asks_for_is_kept_to() -> None:
    """Retry-After is longer than the pause; within reason."""
    for asked, waited in ((25, 25), (1, 2), (1e300, 60), (-5, 2), (math.nan, 2)):
        breaker = Breaker(threshold=1, first_pause=2)
        breaker.failed(0, "429", retry_after=asked)
        assert breaker.wait(0) == waited


@given(st.lists(st.sampled_from(["ask", "fail", "succeed", "abandon", "second"]), max_size=60))
def test_it_never_closes_for_good(events: list[str]) -> None:
    """Whatever happens, after the longest time somebody may ask again."""
    breaker, now = Breaker(threshold=2), 0.0
    for event in events:
        match event:
            case "ask":
                breaker.admit(now)
            case "fail":
                breaker.failed(now, "x")
            case "succeed":
                breaker.succeeded()
            case "abandon":
                breaker.abandoned(now)
            case _:
                now += 1
    assert breaker.admit(now + 30) == 0


class Stub:
    """An orchestrator that answers as told; `hang` makes it never answer."""

    name = "stub"

    def __init__(self, answer: object = None, *, hang: bool = False) -> None:
        self.answer = answer
        self.hang = hang
        self.calls = 0

    async def _any(self) -> object:
        self.calls += 1
        if self.hang:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def deploy(self, spec: DeploySpec) -> Deployment:
        return await self._any()  # type: ignore[return-value] # on purpose

    async def get(self, deployment_id: str) -> Deployment | None:
        return await self._any()  # type: ignore[return-value] # on purpose

    async def stop(self, deployment_id: str) -> None:
        await self._any()

    async def list(self) -> list[Deployment]:
        return await self._any()  # type: ignore[return-value] # on purpose

    async def events(self) -> AsyncIterator[Deployment]:
        return
        yield

    async def close(self) -> None:
        pass


def deployment(**changes: object) -> Deployment:
    known = {"deployment_id": "arena-1", "game": "arena", "version": "1", "state": RunState.RUNNING}
    return Deployment(**{**known, **changes})  # type: ignore[arg-type] # by test


def test_guarded_it_is_still_an_orchestrator() -> None:
    assert isinstance(ResilientOrchestrator(FakeOrchestrator()), Orchestrator)


async def test_what_cannot_start_servers_may_still_stop_them() -> None:
    """Each kind of call has its own breaker; while it is open the orchestrator is left alone."""
    fake = FakeOrchestrator()
    guarded = ResilientOrchestrator(fake, threshold=3, first_pause=20)
    fake.fail("deploy", BUSY, times=100)
    for _ in range(3):
        with pytest.raises(OrchestratorUnavailable, match="503"):
            await guarded.deploy(SPEC)
    with pytest.raises(CircuitOpen, match=r"3 times in a row \(503\).* again in 20 s") as caught:
        await guarded.deploy(SPEC)
    assert caught.value.retry_after == pytest.approx(20, abs=1)
    assert len(fake.calls) == 3
    await guarded.stop("arena-1")
    assert await guarded.list() == []
    assert guarded.describe().state == "open"
    assert [failing.operation for failing in guarded.describe().failing] == ["deploy"]


async def test_each_change_of_a_breaker_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """All are closed at first. Failures that open none are errors, and no change."""
    fake, errors = FakeOrchestrator(), []
    states: dict[str, list[str]] = {}

    def changed(name: str, operation: str, state: BreakerState) -> None:
        assert name == "fake"
        states.setdefault(operation, []).append(state.value)

    guarded = ResilientOrchestrator(
        fake,
        threshold=2,
        first_pause=20,
        on_change=changed,
        on_error=lambda name, operation: errors.append(f"{operation} of {name}"),
    )
    assert states == {operation: ["closed"] for operation in ("deploy", "get", "stop", "list")}
    fake.fail("deploy", BUSY, times=2)
    for count in (1, 2):
        with pytest.raises(OrchestratorUnavailable):
            await guarded.deploy(SPEC)
        assert states["deploy"] == ["closed", "open"][:count]
    assert errors == ["deploy of fake"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "deploy of orchestrator fake is left out for 20 s after 2 failures in a row: 503"
    ]
    caplog.clear()
    fake.restarted()
    await guarded.deploy(SPEC)
    assert states["deploy"] == ["closed", "open", "closed"]
    assert states["list"] == ["closed"]
    assert [record.getMessage() for record in caplog.records] == ["deploy of orchestrator fake works again"]


def test_who_is_known_to_be_back_is_tried_at_once() -> None:
    """One call, and pauses grow from the first again when it fails."""
    breaker = tripped()
    for now in (2.0, 6.0):
        assert breaker.admit(now) == 0
        breaker.failed(now, "503")
    assert breaker.admit(7) == 7
    breaker.let_through()
    assert (breaker.admit(7), breaker.admit(7) > 0) == (0, True)
    breaker.failed(7, "503")
    assert breaker.wait(7) == 2
    breaker.let_through()
    assert breaker.admit(7) == 0
    breaker.succeeded()
    breaker.let_through()
    assert (breaker.state, breaker.wait(7)) == (BreakerState.CLOSED, 0)


def test_a_pause_that_the_other_side_asked_for_is_kept() -> None:
    """Whatever else tells that it is back; one that it asked for earlier has ended with its answer."""
    breaker = Breaker(threshold=1, first_pause=2)
    breaker.failed(0, "429", retry_after=20)
    breaker.let_through()
    assert (breaker.wait(19), breaker.admit(20)) == (1, 0)
    breaker.succeeded()
    breaker.failed(21, "503")
    breaker.let_through()
    assert breaker.admit(21) == 0


@pytest.mark.row(77)
@pytest.mark.parametrize("back", ["it says so", "its list answers again"])
async def test_an_orchestrator_that_is_back_is_asked_at_once(back: str) -> None:
    """Each kind of call, whatever pause it has; who waits for it is told. A list that never failed tells nothing."""
    fake, told = FakeOrchestrator(), 0
    guarded = ResilientOrchestrator(fake, threshold=2, first_pause=20)

    def is_back() -> None:
        nonlocal told
        told += 1

    guarded.subscribe_back(is_back)
    fake.fail("deploy", BUSY, times=2)
    for _ in range(2):
        with pytest.raises(OrchestratorUnavailable):
            await guarded.deploy(SPEC)
    assert guarded.starts_nothing() == "503"
    await guarded.list()
    with pytest.raises(CircuitOpen):
        await guarded.deploy(SPEC)
    assert told == 0
    if back == "it says so":
        fake.restarted()
    else:
        fake.fail("list", BUSY)
        with pytest.raises(OrchestratorUnavailable):
            await guarded.list()
        await guarded.list()
    assert told == 1
    assert guarded.starts_nothing() == ""
    assert (await guarded.deploy(SPEC)).deployment_id == SPEC.deployment_id


@pytest.mark.row(78)
async def test_when_the_pause_is_over_nothing_is_said_of_a_wait() -> None:
    """No call may come for long; then the next one is the try, and is shown so."""
    fake = FakeOrchestrator()
    guarded = ResilientOrchestrator(fake, threshold=1, first_pause=0.3)
    fake.fail("deploy", BUSY)
    with pytest.raises(OrchestratorUnavailable):
        await guarded.deploy(SPEC)
    (failing,) = guarded.describe().failing
    assert (failing.state, failing.retry_in > 0) == ("open", True)
    with pytest.raises(CircuitOpen, match="again in 1 s"):
        await guarded.deploy(SPEC)
    await eventually(lambda: _answers(guarded.wait("deploy") == 0), "the pause is over", 5)
    (failing,) = guarded.describe().failing
    assert (failing.state, failing.retry_in) == ("half-open", 0)
    console = Console(file=io.StringIO(), width=200)
    status = {"matchmaker": "m", **msgspec.to_builtins(guarded.describe())}
    print_orchestrators([status], console)
    assert isinstance(console.file, io.StringIO)
    assert "the next call tries it again" in console.file.getvalue()
    assert "again in" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("state", "retry_in", "says"),
    [
        ("open", 0.2, "again in 1 s"),
        ("open", 29.1, "again in 30 s"),
        ("half-open", 0.0, "the next call"),
        ("closed", 0.0, ""),
    ],
)
@pytest.mark.row(78)
def test_how_the_wait_of_a_breaker_is_shown(state: str, retry_in: float, says: str) -> None:
    """Never as zero seconds."""
    console = Console(file=io.StringIO(), width=200)
    failing = {"operation": "list", "state": state, "failures": 5, "error": "503", "retry_in": retry_in}
    print_orchestrators([{"matchmaker": "m", "name": "launcher", "failing": [failing]}], console)
    assert isinstance(console.file, io.StringIO)
    assert says in console.file.getvalue()
    assert "in 0 s" not in console.file.getvalue()


async def _answers(value: bool) -> bool:
    return value


async def test_a_no_is_an_answer() -> None:
    """No room, no such game, or an image that cannot be fetched: nothing is wrong with the orchestrator, and the games
    beside that one start."""
    fake = FakeOrchestrator()
    guarded = ResilientOrchestrator(fake, threshold=1)
    fake.fail("deploy", NoCapacity("full", retryable=True))
    fake.fail("deploy", OrchestratorError("no such game"))
    fake.fail("deploy", GameUnavailable("its image cannot be fetched", retryable=True))
    for _ in range(3):
        with pytest.raises(OrchestratorError):
            await guarded.deploy(SPEC)
    assert guarded.describe() == OrchestratorStatus("fake", "closed")


@pytest.mark.row(39, 40)
@pytest.mark.parametrize(
    "answer",
    [
        deployment(deployment_id="another"),
        deployment(ports={"udp": Port(7777, 70000, "UDP")}),
        deployment(ports={"udp": Port(-1, 7777, "UDP")}),
        deployment(ports={str(n): Port(1, 1, "UDP") for n in range(100)}),
        deployment(host="evil/path"),
        deployment(host="x" * 300),
        deployment(host=None),
        None,
        "nonsense",
        KeyError("ports"),
        TimeoutError(),
    ],
    ids=repr,
)
async def test_an_answer_nobody_can_use_is_a_typed_error(answer: object) -> None:
    """Whatever a client makes of what its service says."""
    guarded = ResilientOrchestrator(Stub(answer))
    with pytest.raises(OrchestratorUnavailable) as caught:
        await guarded.deploy(SPEC)
    assert caught.value.retryable
    assert caught.value.may_have_started


@pytest.mark.row(40)
async def test_a_list_says_what_runs_even_where_an_address_is_unusable() -> None:
    """One odd entry must not blind the reconciler; nobody is sent to the odd address."""
    good, bad = deployment(), deployment(deployment_id="arena-2", host="a b")
    found = await ResilientOrchestrator(Stub([good, bad])).list()
    assert [(d.deployment_id, d.host) for d in found] == [("arena-1", ""), ("arena-2", "")]


@pytest.mark.row(39)
async def test_a_client_without_a_deadline_gets_one() -> None:
    """It counts as a failure, so the breaker opens."""
    guarded = ResilientOrchestrator(
        Stub(hang=True), threshold=1, limits=dict.fromkeys(("deploy", "get", "stop", "list"), 0.02)
    )
    with pytest.raises(OrchestratorUnavailable, match="does not answer"):
        await guarded.list()
    with pytest.raises(CircuitOpen):
        await guarded.list()


class Named(Stub):
    async def deployment_named(self, native_id: str) -> str | None:
        return await self._any()  # type: ignore[return-value] # on purpose


@pytest.mark.row(39)
@pytest.mark.parametrize(
    "stub", [Named(hang=True), Named(KeyError("a mistake")), Named(BUSY)], ids=["hangs", "mistake", "busy"]
)
async def test_an_orchestrator_that_does_not_say_whose_a_server_is_holds_nobody_up(stub: Named) -> None:
    """The message of a server that calls itself by the orchestrator's name is then left to the reconciler."""
    guarded = ResilientOrchestrator(stub, limits=dict.fromkeys(("deploy", "get", "stop", "list"), 0.02))
    async with asyncio.timeout(2):
        assert await guarded.deployment_named("4f2a") is None


async def test_a_cancelled_trial_leaves_room_for_another() -> None:
    """Nobody stays locked out by an asker that went away."""
    stub = Stub(BUSY)
    guarded = ResilientOrchestrator(stub, threshold=1, first_pause=0.01)
    with pytest.raises(OrchestratorUnavailable):
        await guarded.list()
    await asyncio.sleep(0.02)  # the pause itself
    stub.hang, stub.answer = True, []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await guarded.list()
    stub.hang = False
    assert await guarded.list() == []
    assert guarded.describe().state == "closed"


@pytest.mark.row(37)
@pytest.mark.parametrize(("retry_after", "at_least"), [(None, 0.01), (0.1, 0.1)])
async def test_a_call_is_tried_five_times_with_growing_pauses(
    retry_after: float | None, at_least: float
) -> None:
    """Never sooner than the other side asked for; what helps nothing is not repeated."""
    stub = Stub(OrchestratorUnavailable("503", retryable=True, retry_after=retry_after))
    times: list[float] = []

    async def call() -> list[Deployment]:
        times.append(asyncio.get_running_loop().time())
        return await stub.list()

    heard: list[int] = []
    with pytest.raises(OrchestratorUnavailable, match="503"):
        await retried(call, tries=5, first=0.02, on_failure=lambda number, exc: heard.append(number))
    assert heard == [1, 2, 3, 4]
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert len(pauses) == 4
    assert all(pause >= at_least for pause in pauses)
    stub.answer, stub.calls = OrchestratorError("no such game"), 0
    with pytest.raises(OrchestratorError, match="no such game"):
        await retried(stub.list, tries=5, first=0.02, on_failure=lambda number, exc: None)
    assert stub.calls == 1


@pytest.mark.row(37)
async def test_no_two_come_back_at_the_same_moment() -> None:
    """Twenty that were told the same Retry-After are spread."""
    seen: list[float] = []

    async def one() -> None:
        first = True

        async def call() -> None:
            nonlocal first
            if first:
                first = False
                raise OrchestratorUnavailable("429", retryable=True, retry_after=0.05)
            seen.append(asyncio.get_running_loop().time())

        await retried(call, tries=5, first=0.1, on_failure=lambda number, exc: None)

    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(one())
    assert max(seen) - min(seen) > 0.02


class Trial(Stub):
    """Answers a call when the test says what."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[asyncio.Future[list[Deployment]]] = []

    async def list(self) -> list[Deployment]:
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]


Tried: TypeAlias = tuple[ResilientOrchestrator, Trial, list[asyncio.Task[list[Deployment]]]]


@pytest.fixture
async def tried() -> AsyncIterator[Tried]:
    """Its breaker has just let a trial through, and two more calls came at the same time."""
    inner = Trial()
    guarded = ResilientOrchestrator(
        inner, threshold=1, first_pause=0.01, limits=dict.fromkeys(("deploy", "get", "stop", "list"), 0.5)
    )
    failing = asyncio.create_task(guarded.list())
    await eventually(lambda: bool(inner.answers))
    inner.answers[0].set_exception(BUSY)
    await asyncio.wait([failing])
    assert isinstance(failing.exception(), OrchestratorUnavailable)
    await eventually(lambda: guarded.wait("list") == 0)
    calls = [asyncio.create_task(guarded.list()) for _ in range(3)]
    await eventually(lambda: len(inner.answers) == 2)
    await asyncio.sleep(0)
    assert (len(inner.answers), guarded.describe().state, guarded.wait("list")) == (2, "half-open", 0)
    yield guarded, inner, calls
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)


@pytest.mark.row(77)
async def test_who_comes_during_the_trial_is_called_when_it_succeeds(tried: Tried) -> None:
    """Two servers started together when an orchestrator is back: no error for the second."""
    _, inner, calls = tried
    inner.answers[1].set_result([])
    await eventually(lambda: len(inner.answers) == 4)
    for answer in inner.answers[2:]:
        answer.set_result([])
    assert await asyncio.gather(*calls) == [[], [], []]


@pytest.mark.row(77)
async def test_who_comes_during_the_trial_hears_of_the_pause_when_it_fails(tried: Tried) -> None:
    """And is not called."""
    _, inner, calls = tried
    inner.answers[1].set_exception(BUSY)
    await asyncio.wait(calls)
    assert [type(call.exception()) for call in calls] == [OrchestratorUnavailable, CircuitOpen, CircuitOpen]
    assert len(inner.answers) == 2


@pytest.mark.row(77)
async def test_when_the_trial_is_cancelled_the_next_one_in_line_is_the_trial(tried: Tried) -> None:
    """One of the two."""
    _, inner, calls = tried
    calls[0].cancel()
    await eventually(lambda: len(inner.answers) == 3)
    inner.answers[2].set_exception(BUSY)
    await asyncio.wait(calls)
    assert sorted(type(call.exception()).__name__ for call in calls[1:]) == [
        "CircuitOpen",
        "OrchestratorUnavailable",
    ]


@pytest.mark.row(77)
async def test_a_trial_that_hangs_holds_the_others_up_no_longer_than_a_call_may_take(tried: Tried) -> None:
    """They hear it when the trial has failed, which is at the same time."""
    _, inner, calls = tried
    async with asyncio.timeout(3):
        await asyncio.wait(calls)
    assert [type(call.exception()) for call in calls] == [OrchestratorUnavailable, CircuitOpen, CircuitOpen]
    assert len(inner.answers) == 2
