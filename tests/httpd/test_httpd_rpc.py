"""Requests over NATS: attempts merged, outages survived, buffers bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_matchmaker_httpd.matchmaker.client import Calls, open_calls
from tipoff_matchmaker_httpd.matchmaker.feedback import MAX_BUFFERED, Call
from tipoff_shared.errors import Internal, NoServerInTime, TipoffError, Unavailable
from tipoff_shared.messages import ACKNOWLEDGED, PlayRequest
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.tasks import Tasks

READY = b'{"SessionReady":{"token":"t","ip":"1.2.3.4","port":5}}'
PROGRESS = b'{"ProgressReport":"soon"}'


@pytest.fixture
async def calls(nats: Bus) -> AsyncIterator[Calls]:
    async with (
        Tasks("test") as tasks,
        open_calls(nats, tasks, deadline=2, acknowledge=1, patience=0.3) as calls,
    ):
        yield calls


def new_call(calls: Calls) -> Call:
    return calls.call(PlayRequest("arena", "1", "127.0.0.1"), {"Tipoff-Request-Id": "x"})


async def everything(call: Call) -> list[bytes]:
    async with asyncio.timeout(5):
        return [message async for message in call]


@pytest.mark.row(21)
async def test_nobody_there_is_an_error_at_once(calls: Calls) -> None:
    """No responders is not a time-out."""
    call = new_call(calls)
    await call.ask()
    assert await everything(call) == [b'{"Error":[503,"no matchmaker is running"]}']
    assert isinstance(call.failure, Unavailable)
    assert call.failure.retry_after


async def test_attempts_are_merged(calls: Calls) -> None:
    """One Acknowledged, one SessionRequestAccepted, the first SessionReady; then it is over."""
    call = new_call(calls)
    call._alive = {"1", "2"}
    for attempt in ("1", "2"):
        call.receive(ACKNOWLEDGED, None, attempt)
        call.receive(b'{"SessionRequestAccepted":"s1"}', None, attempt)
    call.receive(READY, None, "2")
    call.receive(READY, None, "1")
    assert await everything(call) == [ACKNOWLEDGED, b'{"SessionRequestAccepted":"s1"}', READY]
    assert call.ready
    assert call.failure is None
    assert not calls.waiting


async def test_an_error_waits_for_the_other_attempts(calls: Calls) -> None:
    """Only the last one alive can fail the call."""
    call = new_call(calls)
    call._alive = {"1", "2"}
    call.receive(b'{"Error":[502,"first"]}', {"Retry-After": "3"}, "1")
    call.receive(b"", None, "1")
    assert call.failure is None
    call.receive(b'{"Error":[404,"second"]}', {"Retry-After": "3"}, "2")
    assert await everything(call) == [b'{"Error":[404,"second"]}']
    assert (call.failure.code, call.failure.retry_after) == (404, 3.0)  # type: ignore[union-attr] # it failed


@pytest.mark.parametrize(
    ("data", "headers", "expected"),
    [
        (b"", None, Internal),
        (b"", {"Status": "503"}, Unavailable),
        (b'{"Error":"text"}', None, Internal),
        (b'{"Error":[999,"x"]}', {"Retry-After": "soon"}, Internal),
        (b' {"Error": [408, "late"]}', None, NoServerInTime),
    ],
)
async def test_every_end_is_a_typed_error(
    calls: Calls, data: bytes, headers: dict[str, str] | None, expected: type[TipoffError]
) -> None:
    """Whatever a matchmaker sends last."""
    call = new_call(calls)
    call._alive = {"1"}
    call.receive(data, headers, "1")
    assert type(call.failure) is expected


async def test_what_no_client_reads_is_not_forwarded(calls: Calls) -> None:
    """bevygap's client fails on text that it does not know."""
    call = new_call(calls)
    call._alive = {"1"}
    for data in (b"hello", b'{"Unknown":1}', b"\xff", b"[]"):
        call.receive(data, None, "1")
    call.receive(b'{ "ProgressReport" : "soon" }', None, "1")  # the same JSON in another spelling is read
    call.receive(READY, None, "1")
    assert await everything(call) == [PROGRESS, READY]


async def test_progress_for_a_slow_reader_is_bounded(calls: Calls) -> None:
    """What counts still arrives."""
    call = new_call(calls)
    call._alive = {"1"}
    for _ in range(1000):
        call.receive(PROGRESS, None, "1")
    call.receive(READY, None, "1")
    got = await everything(call)
    assert len(got) == MAX_BUFFERED + 1
    assert got[-1] == READY


async def test_closing_forgets_the_call(calls: Calls) -> None:
    """Twice is once; late answers go nowhere."""
    call = new_call(calls)
    call.close()
    call.close()
    call.receive(READY, None, "1")
    assert await everything(call) == []
    assert not calls.waiting


@pytest.fixture
async def own_nats(tmp_path: Path) -> AsyncIterator[EmbeddedNats]:
    """A nats-server that the test may kill."""
    async with embedded_nats(tmp_path / "nats") as server:
        yield server


async def kill(server: EmbeddedNats) -> None:
    server.process.kill()
    await server.process.wait()


async def test_requests_in_flight_outlive_a_short_outage(own_nats: EmbeddedNats) -> None:
    """NATS is killed and comes back: the same request id is asked again, and the player gets the seat."""
    settings = own_nats.settings("outage")
    async with (
        connect(settings, name="httpd") as bus,
        connect(settings, name="matchmaker") as other,
        Tasks("test") as tasks,
        open_calls(bus, tasks, deadline=20, acknowledge=10, patience=8) as calls,
    ):
        asked: asyncio.Queue[Msg] = asyncio.Queue()

        async def receive(msg: Msg) -> None:
            asked.put_nowait(msg)

        await other.nc.subscribe(other.subjects.all_requests, queue="matchmakers", cb=receive)
        await other.flush()
        call = new_call(calls)
        await call.ask()
        async with asyncio.timeout(15):
            first = await asked.get()
            await first.respond(ACKNOWLEDGED)
            assert await anext(call) == ACKNOWLEDGED
            await kill(own_nats)
            await own_nats.start()
            second = await asked.get()
            assert second.headers and first.headers
            assert second.headers["Tipoff-Request-Id"] == first.headers["Tipoff-Request-Id"]
            assert float(second.headers["Tipoff-Timeout"]) < float(first.headers["Tipoff-Timeout"]) < 20
            assert second.data == first.data
            assert second.reply != first.reply
            await second.respond(ACKNOWLEDGED)
            await second.respond(READY)
        assert await everything(call) == [READY]


async def test_a_retry_that_falls_into_an_outage_waits_for_its_end(own_nats: EmbeddedNats) -> None:
    """The patience for NATS holds, not the first try to publish; what was said before is no answer after it."""
    settings = own_nats.settings("outage")
    async with (
        connect(settings, name="httpd") as bus,
        connect(settings, name="matchmaker") as other,
        Tasks("test") as tasks,
        open_calls(bus, tasks, deadline=20, acknowledge=10, patience=8, retry=0.2, silence=0.2) as calls,
    ):
        asked: asyncio.Queue[Msg] = asyncio.Queue()
        again: asyncio.Queue[Msg] = asyncio.Queue()

        async def receive(msg: Msg) -> None:
            asked.put_nowait(msg)

        async def receive_again(msg: Msg) -> None:
            again.put_nowait(msg)

        await other.nc.subscribe(other.subjects.all_requests, queue="matchmakers", cb=receive)
        await other.nc.subscribe(other.subjects.all_retries, cb=receive_again)
        await other.flush()
        call = new_call(calls)
        await call.ask()
        async with asyncio.timeout(15):
            await (await asked.get()).respond(ACKNOWLEDGED)
            assert await anext(call) == ACKNOWLEDGED
            await kill(own_nats)
            await asyncio.sleep(0.6)  # several retries are due while NATS is away
            while not again.empty():
                again.get_nowait()
            await own_nats.start()
            await asked.get()  # not answered: whoever has it may be stopped
            await (await again.get()).respond(READY)
        assert (await everything(call))[-1] == READY


@pytest.mark.row(14)
async def test_a_long_outage_ends_in_a_typed_error(own_nats: EmbeddedNats) -> None:
    """Row 14: within two seconds for those who wait, at once for those who come."""
    async with (
        connect(own_nats.settings("outage"), name="httpd") as bus,
        Tasks("test") as tasks,
        open_calls(bus, tasks, deadline=20, acknowledge=10, patience=0.5) as calls,
    ):
        await bus.nc.subscribe(bus.subjects.all_requests)  # somebody who never answers
        await bus.flush()
        waiting = new_call(calls)
        await waiting.ask()
        await bus.flush()
        await kill(own_nats)
        async with asyncio.timeout(2):
            assert await everything(waiting) == [b'{"Error":[503,"NATS is away"]}']
            late = new_call(calls)
            await late.ask()
            assert await everything(late) == [b'{"Error":[503,"NATS is away"]}']
        await own_nats.start()
