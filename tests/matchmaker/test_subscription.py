"""Play requests as messages: what is taken, and what each outcome looks like to those who asked over NATS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from tests.matchmaker.world import ARENA, FAST, World, failed, games_of
from tests.polling import eventually
from tipoff_matchmaker.errors import AnsweredElsewhere, ShuttingDown
from tipoff_matchmaker.peers import Peers
from tipoff_matchmaker.requests.gensession import GenSession
from tipoff_matchmaker.requests.pending import PendingRequest, PendingRequests
from tipoff_matchmaker.requests.resumption import ResumeRequest
from tipoff_matchmaker.requests.subscription import RequestSubscription
from tipoff_matchmaker.settings import Settings
from tipoff_shared import names
from tipoff_shared.errors import Conflict, SlowDown, TipoffError
from tipoff_shared.messages import (
    MAX_MESSAGE,
    Acknowledged,
    PlayRequest,
    ProgressReport,
    SessionReady,
    SessionRequestAccepted,
    encode_request,
)
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.records import Drain, Kick, encode
from tipoff_shared.settings import NatsSettings
from tipoff_shared.subjects import REQUEST_ID_HEADER, TIMEOUT_HEADER

READY = SessionReady("token", "127.0.0.1", 7777, "digest", "s", "7", "one")
BEVY = msgspec.structs.replace(ARENA, name="bevy", bevygap=True, dialect="lightyear", request_timeout=3)

Place = Callable[[PendingRequest], Awaitable[SessionReady]]


class Counted:
    """Stands for the metrics that requests are counted in."""

    def __init__(self) -> None:
        self.refusals: list[int] = []
        self.answers: list[tuple[float, bool]] = []

    def refused(self, code: int) -> None:
        self.refusals.append(code)

    def answered(self, seconds: float, *, warm: bool) -> None:
        self.answers.append((seconds, warm))


class Desk:
    """Takes requests from NATS; the test says what becomes of each."""

    def __init__(self, bus: Bus, settings: NatsSettings, limit: int = 2) -> None:
        self.bus = bus
        self.world = World(bus, settings)
        """Its players."""
        self.placed: list[PendingRequest] = []
        self.resumed: list[ResumeRequest] = []
        self.place: Place = self._ready
        self.done = asyncio.Event()
        """For `later`."""
        ours = Settings(**{**FAST, "max_requests": limit})  # type: ignore[arg-type] # checked by pydantic
        self.handlers = BoundedHandlers("play request", limit)
        self.metrics = Counted()
        self.peers = Peers(bus, ours.instance, silent_after=60)
        self.pending = PendingRequests(self._place, None, None, ours)  # type: ignore[arg-type] # none has a record
        self.requests = RequestSubscription(
            bus,
            games_of(ARENA, msgspec.structs.replace(ARENA, version="2.0")),
            self.pending,
            self,  # type: ignore[arg-type] # as much of a Resumption as requests use
            self.handlers,
            self.peers,
            self.metrics,  # type: ignore[arg-type] # as much of it as requests use
            ours,
        )
        self.gensession = GenSession(bus, lambda: BEVY, self.pending, self.handlers)

    async def _place(self, request: PendingRequest) -> SessionReady:
        self.placed.append(request)
        return await self.place(request)

    async def _ready(self, request: PendingRequest) -> SessionReady:
        return READY

    async def resume(self, request: ResumeRequest) -> SessionReady:
        self.resumed.append(request)
        return READY

    async def later(self, request: PendingRequest) -> SessionReady:
        await self.done.wait()
        return READY

    def fails(self, error: Exception) -> None:
        async def place(request: PendingRequest) -> SessionReady:
            raise error

        self.place = place

    async def until_placed(self, count: int) -> None:
        await eventually(lambda: len(self.placed) == count, f"{count} are placed", 20)

    async def send(
        self,
        inbox: str = "",
        *,
        request: PlayRequest | None = None,
        headers: dict[str, str] | None = None,
        again: bool = False,
    ) -> None:
        """A request of which only what is placed is looked at."""
        subject = self.bus.subjects.retry if again else self.bus.subjects.request
        payload = encode_request(request or PlayRequest("arena", "1"))
        await self.bus.nc.publish(subject("arena", "1"), payload, reply=inbox, headers=headers)

    async def all_is_handled(self, *, again: bool = False) -> None:
        """Whatever was sent before has been taken: a request after it is answered."""
        await (await self.world.ask("no-such-game", again=again)).end(timeout=20)

    async def asks_the_service(self, payload: bytes = b"") -> tuple[bytes, dict[str, str]]:
        msg = await self.bus.request(self.bus.subjects.gensession, payload, timeout=20)
        return msg.data, msg.headers or {}


@pytest.fixture
async def desk(nats: Bus, settings: NatsSettings) -> AsyncIterator[Desk]:
    desk = Desk(nats, settings)
    await desk.requests.open()
    await desk.gensession.open()
    yield desk
    desk.done.set()
    await desk.gensession.stop()
    await desk.gensession.stop()
    await desk.requests.stop_taking()
    await desk.requests.stop_taking()
    await desk.requests.drain(20)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("progress", [False, True])
async def test_a_request_and_its_answer_as_messages(desk: Desk, again: bool, progress: bool) -> None:
    """Acknowledged, accepted, progress, the seat; it is counted as warm where there was no progress to tell."""

    async def place(request: PendingRequest) -> SessionReady:
        if progress:
            await request.report("a server starts")
        return READY

    desk.place = place
    request_id = names.new_request_id()
    answers = await desk.world.ask(
        "arena", "2.0", request_id=request_id, client_ip="203.0.113.7", timeout=4, again=again
    )
    assert await answers.end(timeout=20) == READY
    session_id = names.session_id(request_id)
    reports = [ProgressReport("a server starts")] if progress else []
    assert answers.seen == [Acknowledged(), SessionRequestAccepted(session_id), *reports, READY]
    (request,) = desk.placed
    assert (request.session_id, request.game.key) == (session_id, ("arena", "2.0"))
    assert (request.client_ip, request.timeout, request.broadcast) == ("203.0.113.7", 4, again)
    assert not request.repeated
    await eventually(lambda: len(desk.metrics.answers) == 1, "it is counted", 20)
    ((seconds, warm),) = desk.metrics.answers
    assert warm is not progress
    assert 0 <= seconds < 30
    assert desk.metrics.refusals == []


async def test_a_request_waits_as_long_as_its_client_and_its_game_allow(desk: Desk) -> None:
    """What is no number of seconds is no limit, and what is no address is none."""
    allowed = {"4": 4.0} | dict.fromkeys(("1e9", "10.5", "0", "-1", "nan", "inf", "soon", ""), 10.0)
    for number, given in enumerate(allowed, start=1):
        request = PlayRequest("arena", "1", client_ip="not an address")
        await desk.send("inbox", request=request, headers={TIMEOUT_HEADER: given} if given else None)
        await desk.until_placed(number)
    assert [request.timeout for request in desk.placed] == list(allowed.values())
    assert {request.client_ip for request in desk.placed} == {""}


async def test_the_request_id_is_the_headers_else_the_bodys_else_a_new_one(desk: Desk) -> None:
    one, two = names.new_request_id(), names.new_request_id()
    for number, (header, body) in enumerate(((one, two), ("", two), ("", None)), start=1):
        headers = {REQUEST_ID_HEADER: header} if header else None
        await desk.send("inbox", request=PlayRequest("arena", "1", request_id=body), headers=headers)
        await desk.until_placed(number)
    first, second, third = (request.session_id for request in desk.placed)
    assert (first, second) == (names.session_id(one), names.session_id(two))
    assert third not in (first, second)


@pytest.mark.parametrize(
    ("error", "code", "retry_after"),
    [
        (SlowDown("too many\nat once", retry_after=2.5), 429, "2.5"),
        (Conflict("it has ended"), 409, ""),
        (KeyError("a mistake"), 500, ""),
        (ShuttingDown(), 503, "1"),
    ],
    ids=repr,
)
async def test_each_error_has_its_code_and_says_when_to_try_again(
    desk: Desk, error: Exception, code: int, retry_after: str
) -> None:
    """A fault of ours is 500, and tells no details. Only who says how long it waits may ask another one at once."""
    desk.fails(error)
    text = str(error) if isinstance(error, TipoffError) else "the matchmaker has made a mistake; it is logged"
    for timeout in (5, None):  # of our httpd; of bevygap's
        answers = await desk.world.ask(timeout=timeout)
        end = failed(await answers.end(timeout=20))
        assert (end.code, end.message) == (code, text)
        assert answers.headers.get("Retry-After", "") == retry_after
        asks_again = timeout is not None and isinstance(error, ShuttingDown)
        assert answers.headers.get("Tipoff-Ask-Again", "") == ("1" if asks_again else "")
    assert desk.metrics.refusals == [code, code]
    assert desk.metrics.answers == []
    body, headers = await desk.asks_the_service()
    assert body == b""
    assert headers["Nats-Service-Error-Code"] == str(code)
    assert headers["Nats-Service-Error"] == text.replace("\n", " ")
    assert headers.get("Retry-After", "") == retry_after


async def test_who_cannot_take_part_leaves_the_answer_to_the_others(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all of them got the request, and there is another one."""
    alone = False
    monkeypatch.setattr(Peers, "alone", property(lambda _: alone))
    for error in (AnsweredElsewhere("another one answers"), ShuttingDown()):
        desk.fails(error)
        answers = await desk.world.ask(again=True)
        await desk.all_is_handled(again=True)
        assert [type(one) for one in answers.seen_now()] == [Acknowledged, SessionRequestAccepted]
    assert len(desk.placed) == 2
    assert 409 not in desk.metrics.refusals
    assert 503 not in desk.metrics.refusals
    answers = await desk.world.ask()
    assert failed(await answers.end(timeout=20)).code == 503, "nobody else got it"
    alone = True
    answers = await desk.world.ask(again=True)
    assert failed(await answers.end(timeout=20)).code == 503, "nobody else answers"
    desk.fails(Conflict("it has ended"))
    answers = await desk.world.ask(again=True)
    assert failed(await answers.end(timeout=20)).code == 409, "all would say the same"


async def test_beyond_the_limit_new_ones_are_refused_and_those_sent_to_all_are_left_to_others(
    desk: Desk,
) -> None:
    """At once, and without taking part; each kind has its own places."""
    desk.place = desk.later
    for again in (False, True):
        for _ in range(2):
            await desk.world.ask(again=again)
    await desk.until_placed(4)
    refused = await desk.world.ask()
    end = failed(await refused.end(timeout=20))
    assert (end.code, refused.seen, refused.headers["Retry-After"]) == (503, [end], "2")
    assert desk.metrics.refusals == [503]
    _, headers = await desk.asks_the_service()
    assert (headers["Nats-Service-Error-Code"], headers["Retry-After"]) == ("503", "2")
    unheard = await desk.world.ask(again=True)
    await (await desk.world.ask()).end(timeout=20)
    assert unheard.seen_now() == []
    assert len(desk.placed) == 4


async def test_what_nobody_waits_for_is_not_handled(desk: Desk) -> None:
    for again in (False, True):
        await desk.send(again=again)
        await desk.all_is_handled(again=again)
    assert desk.placed == []


async def test_a_client_that_left_and_a_session_that_ended_end_their_requests(desk: Desk) -> None:
    """A message that is none of these is ignored, whatever it says."""
    desk.place = desk.later
    await desk.send("asker.1")
    kicked = await desk.world.ask()
    await desk.until_placed(2)
    for data in (b"nonsense", encode(Drain()), encode(Kick("unknown", "x"))):
        await desk.bus.publish(desk.bus.subjects.over, data)
    await desk.bus.publish(desk.bus.subjects.left, b"\xff")
    session_id = names.session_id(kicked.request_id)
    await desk.bus.publish(desk.bus.subjects.over, encode(Kick(session_id, "you were kicked")))
    assert failed(await kicked.end(timeout=20)).message == "you were kicked; ask with a new request id"
    assert desk.handlers.in_flight == 1
    await desk.bus.publish(desk.bus.subjects.left, b"asker")
    await eventually(lambda: not desk.handlers.in_flight, "the other one is let go", 20)
    assert not desk.done.is_set()


async def test_a_question_to_the_micro_service(desk: Desk) -> None:
    """Its game, the address of the player, the game's own time; the answer has bevygap's members."""
    for payload, address in (
        (b'{"client_ip": "203.0.113.7"}', "203.0.113.7"),
        (b'{"client_ip": "nonsense"}', ""),
        (b"{}", ""),
        (b"", ""),
        (b'{"client_ip": "::1"}'.ljust(MAX_MESSAGE), "::1"),
    ):
        body, headers = await desk.asks_the_service(payload)
        assert json.loads(body) == {
            "connect_token": "token",
            "gameserver_ip": "127.0.0.1",
            "gameserver_port": 7777,
            "cert_digest": "digest",
        }
        assert not headers
        request = desk.placed.pop()
        assert (request.game, request.client_ip, request.timeout) == (BEVY, address, 3)
        await request.report("nobody hears this")


async def test_what_is_no_question_to_the_micro_service_is_told_so(desk: Desk) -> None:
    for payload, says in (
        (b"[]", "not a request like"),
        (b"\xff", "not a request like"),
        (b"{}" + b" " * (MAX_MESSAGE - 1), f"{MAX_MESSAGE} bytes"),
    ):
        _, headers = await desk.asks_the_service(payload)
        assert headers["Nats-Service-Error-Code"] == "400"
        assert says in headers["Nats-Service-Error"]
    await desk.bus.publish(desk.bus.subjects.gensession, b"")  # without a reply subject
    await desk.until_placed(1)
    assert (await desk.asks_the_service())[0] != b""


@pytest.mark.parametrize("in_time", [True, False])
async def test_requests_in_hand_are_finished_before_the_end(
    nats: Bus, settings: NatsSettings, in_time: bool
) -> None:
    """For as long as is given; no further one is taken."""
    desk = Desk(nats, settings)
    desk.place = desk.later
    await desk.requests.open()
    answers = [await desk.world.ask(again=again) for again in ((False, True) if in_time else (False,))]
    await desk.until_placed(len(answers))
    await desk.requests.stop_taking()
    late = await desk.world.ask()
    draining = asyncio.create_task(desk.requests.drain(20 if in_time else 0.01))
    await asyncio.sleep(0)  # it begins
    if in_time:
        assert not draining.done()
        desk.done.set()
        assert [await one.end(timeout=20) for one in answers] == [READY, READY]
    await asyncio.wait_for(draining, 20)
    await nats.flush()
    assert late.seen_now() == []
    assert desk.handlers.in_flight == 0
