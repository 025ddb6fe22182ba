"""Requests in hand: those with one id are one request, and what nobody can be given is let go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA
from tests.polling import eventually
from tipoff_matchmaker.errors import ShuttingDown
from tipoff_matchmaker.requests.pending import PendingRequest, PendingRequests
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import Conflict, NoServerInTime, Unavailable
from tipoff_shared.games import Game
from tipoff_shared.messages import SessionReady
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import SessionRecord, SessionState

READY = SessionReady("token", "127.0.0.1", 7777, session_id="s", client_id="7", deployment_id="one")
REQUESTED = SessionState.REQUESTED
ME = "me"


class Hand:
    """Requests in hand, whose seats a test finds: it answers each call of `place`. Without `fleet` none has a
    record."""

    def __init__(self, tasks: Tasks, fleet: Fleet | None = None) -> None:
        self._tasks = tasks
        self.placing: list[tuple[PendingRequest, asyncio.Future[SessionReady]]] = []
        self.told: dict[str, list[str]] = {}
        self.says = ""
        """What it reports of each request as soon as that is placed."""
        sessions: Any = None if fleet is None else fleet.parts.sessions
        self.pending = PendingRequests(self._place, sessions, tasks, Settings(instance=ME))

    async def _place(self, request: PendingRequest) -> SessionReady:
        future: asyncio.Future[SessionReady] = asyncio.get_running_loop().create_future()
        self.placing.append((request, future))
        if self.says:
            await request.report(self.says)
        return await future

    def request(
        self, name: str = "first", *, timeout: float = 60, game: Game = ARENA, broadcast: bool = False
    ) -> PendingRequest:
        told = self.told.setdefault(name, [])

        async def tell(text: str) -> None:
            told.append(text)

        return PendingRequest(
            session_id="s",
            game=game,
            client_ip="203.0.113.7",
            timeout=timeout,
            tell=tell,
            broadcast=broadcast,
        )

    async def plays(self, request: PendingRequest, *, placed: int | None = None, inbox: str = "") -> Any:
        """The request is in hand; with `placed`, as the one that is placed then."""
        play: Coroutine[Any, Any, SessionReady] = self.pending.play(request, inbox)
        task = self._tasks.start_awaited(play, "play")
        if placed is None:
            await asyncio.sleep(0)  # its task begins
        else:
            await eventually(lambda: len(self.placing) == placed, f"{placed} are placed", 20)
        return task

    async def let_go(self) -> None:
        """What was begun for those that have ended has ended."""
        await eventually(lambda: not self._tasks.running, "all is let go", 20)


@pytest.fixture
async def hand() -> AsyncIterator[Hand]:
    async with Tasks("players") as tasks:
        yield Hand(tasks)


async def _waiting(fleet: Fleet, request: PendingRequest) -> None:
    """The request's record waits, and is ours."""
    await fleet.session("s", REQUESTED, owner=ME, deployment_id="")
    request.waits = True


async def _record(fleet: Fleet) -> SessionRecord:
    record = await fleet.world.session("s")
    assert record is not None
    return record


async def test_a_repetition_hears_the_progress_and_is_answered_from_the_record(hand: Hand) -> None:
    """Its own token comes from what the first one has written down; until then it is told what that one is told."""
    first, second = hand.request(), hand.request("second")
    one = await hand.plays(first, placed=1)
    two = await hand.plays(second)
    await first.report("a server starts")
    assert hand.told == {"first": ["a server starts"], "second": ["a server starts"]}
    hand.placing[0][1].set_result(READY)
    assert await one == READY
    await eventually(lambda: len(hand.placing) == 2, "the repetition is placed", 20)
    request, placed = hand.placing[1]
    assert request is second
    assert (request.repeated, request.broadcast) == (True, False)
    assert (first.repeated, first.broadcast) == (False, False)
    await first.report("nobody listens")
    assert hand.told["second"] == ["a server starts"]
    placed.set_result(READY)
    assert await two == READY


async def test_a_repetition_gets_the_error_of_the_first(hand: Hand) -> None:
    first = await hand.plays(hand.request(), placed=1)
    others = [await hand.plays(hand.request(name)) for name in ("second", "third")]
    others[0].cancel()
    await asyncio.wait(others[:1])
    hand.placing[0][1].set_exception(Unavailable("NATS is away", retry_after=3))
    for task in (first, others[1]):
        with pytest.raises(Unavailable, match="NATS is away"):
            await task
    assert len(hand.placing) == 1, "none is placed again"


async def test_an_id_in_hand_is_good_for_one_game(hand: Hand) -> None:
    await hand.plays(hand.request(), placed=1)
    another = hand.request("another", game=msgspec.structs.replace(ARENA, version="2"))
    with pytest.raises(Conflict, match="another game"):
        await (await hand.plays(another))


@pytest.mark.parametrize(
    ("first", "second", "leads"),
    [(True, False, True), (True, True, False), (False, False, False), (False, True, False)],
)
async def test_who_may_watch_another_matchmaker_only_leads_nobody_else(
    hand: Hand, first: bool, second: bool, leads: bool
) -> None:
    """A request sent to all may end without an answer here; one sent to us may not depend on that. The first one's end
    is not the end of the second."""
    one = await hand.plays(hand.request(broadcast=first), placed=1)
    two = await hand.plays(hand.request("second", broadcast=second), placed=2 if leads else None)
    if leads:
        hand.placing[0][1].set_result(READY)
        assert await one == READY
        await hand.plays(hand.request("third"))
        assert len(hand.placing) == 2, "it follows the second"
        hand.placing[1][1].set_result(READY)
        assert await two == READY
        await eventually(lambda: len(hand.placing) == 3, "the third is placed", 20)
        assert hand.placing[2][0].repeated
    else:
        assert len(hand.placing) == 1


async def test_after_an_answer_the_same_id_is_a_new_request(hand: Hand) -> None:
    for number in (1, 2):
        task = await hand.plays(hand.request(), placed=number)
        hand.placing[-1][1].set_result(READY)
        assert await task == READY
    assert not hand.placing[1][0].repeated


@pytest.mark.parametrize("role", ["first", "repetition", "placed again"])
@pytest.mark.parametrize("text", ["", "a server starts"])
async def test_who_waited_too_long_hears_what_was_heard_last(hand: Hand, role: str, text: str) -> None:
    """Also when it only waited for another one's outcome."""
    hand.says = text
    first = hand.request(timeout=0.05 if role == "first" else 60)
    first.timeout = 0.05  # what its answer names
    task = await hand.plays(first, placed=1)
    if role != "first":
        second = await hand.plays(hand.request("second", timeout=0.05))
        if role == "placed again":
            hand.placing[0][1].set_result(READY)
            await task
        task = second
    last = rf" \(last heard: {text}\)" if text else ""
    with pytest.raises(NoServerInTime, match=rf"^no server became ready within 0.05 s{last}$"):
        await task


async def test_a_session_that_is_ended_answers_its_request_at_once(hand: Hand) -> None:
    """With the reason, whatever it was told before; another session's end is nothing to it."""
    request = hand.request()
    task = await hand.plays(request, placed=1)
    await request.report("a server starts")
    hand.pending.end("another", "kicked")
    request.check_deadline()
    assert not task.done()
    hand.pending.end("s", "you were kicked")
    with pytest.raises(TimeoutError):
        request.check_deadline()
    with pytest.raises(Conflict, match=r"^you were kicked; ask with a new request id$"):
        await asyncio.wait_for(task, 20)
    hand.pending.end("s", "kicked again")


async def test_a_request_that_ends_while_its_time_is_over_is_told_the_reason(hand: Hand) -> None:
    """The time is over already, and cannot be changed any more."""
    request = hand.request()
    ended: list[TimeoutError] = []
    async with asyncio.timeout(20):
        try:
            async with request.within() as within:
                within.reschedule(0)
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    request.end("you were kicked")
        except TimeoutError as exc:
            ended.append(exc)
    assert len(ended) == 1
    assert isinstance(request.too_late(), Conflict)


@pytest.mark.parametrize(
    ("how", "goes_on", "owner", "reason"),
    [
        ("no seat", False, ME, "all full"),
        ("too late", False, ME, "no server became ready within 0.2 s"),
        ("cancelled", True, "", ""),
        ("stopping", True, "", ""),
        ("fault", True, "", ""),
        ("answered", True, ME, ""),
        ("not ours", True, ME, ""),
    ],
)
async def test_what_was_written_for_a_request_is_let_go_with_it(
    fleet: Fleet, how: str, goes_on: bool, owner: str, reason: str
) -> None:
    """An error ends its session. When this matchmaker ends, or goes wrong, another one may take it over at once."""
    async with Tasks("players") as tasks:
        hand = Hand(tasks, fleet)
        request = hand.request(timeout=0.2 if how == "too late" else 60)
        await _waiting(fleet, request)
        request.waits = how != "not ours"
        task = await hand.plays(request, placed=1)
        placed = hand.placing[0][1]
        ends: dict[str, Callable[[], object]] = {
            "no seat": lambda: placed.set_exception(Unavailable("all full")),
            "not ours": lambda: placed.set_exception(Unavailable("all full")),
            "stopping": lambda: placed.set_exception(ShuttingDown()),
            "fault": lambda: placed.set_exception(KeyError("a mistake")),
            "cancelled": task.cancel,
            "answered": lambda: placed.set_result(READY),
            "too late": lambda: None,
        }
        ends[how]()
        await asyncio.wait((task,))
        await hand.let_go()
    record = await _record(fleet)
    assert (record.state is REQUESTED, record.owner, record.reason) == (goes_on, owner, reason)


@pytest.mark.parametrize("fails", [True, False])
async def test_a_matchmaker_that_ends_waits_until_its_requests_are_let_go(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """For as long as it is given. A write that fails is left to the deadline of the record."""
    release = asyncio.Event()
    sessions = fleet.world.buckets.sessions
    change = sessions.change

    async def slow(*args: Any, **options: Any) -> Any:
        await release.wait()
        if fails:
            raise Unavailable("NATS is away")
        return await change(*args, **options)

    failures: list[BaseException] = []
    async with Tasks("players", failures.append) as tasks, asyncio.timeout(30):
        hand = Hand(tasks, fleet)
        await hand.pending.settle(20)
        request = hand.request()
        await _waiting(fleet, request)
        task = await hand.plays(request, placed=1)
        monkeypatch.setattr(sessions, "change", slow)
        task.cancel()
        await asyncio.wait((task,))
        await hand.pending.settle(0.01)
        settling = asyncio.create_task(hand.pending.settle(60))
        await asyncio.sleep(0)  # it begins to wait
        assert not settling.done()
        release.set()
        await settling
        assert not tasks.running
        assert ((await _record(fleet)).owner == "") is not fails
        await hand.pending.settle(20)
    assert failures == []


async def test_a_request_whose_reply_nobody_reads_is_cancelled_unless_another_reads_one(hand: Hand) -> None:
    """The first client leaves, then the second; after its answer a client is nobody's."""
    one = await hand.plays(hand.request(), placed=1, inbox="_INBOX.one.1")
    two = await hand.plays(hand.request("second"), inbox="_INBOX.two.1")
    hand.pending.reply_unread("_INBOX.three")
    hand.pending.reply_unread("_INBOX.one")
    await asyncio.sleep(0)  # a cancellation would arrive
    assert not one.done()
    hand.pending.reply_unread("_INBOX.two")
    await asyncio.wait((one, two), timeout=20)
    assert (one.cancelled(), two.cancelled()) == (True, True)
    again = await hand.plays(hand.request(), placed=2, inbox="_INBOX.one.2")
    hand.placing[1][1].set_result(READY)
    assert await again == READY
    hand.pending.reply_unread("_INBOX.one")
