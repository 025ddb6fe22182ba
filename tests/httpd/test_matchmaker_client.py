"""Requests over NATS: nobody there, outages survived, nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.msg import Msg

from tipoff.up.embedded_nats import EmbeddedNats, embedded_nats
from tipoff_matchmaker_httpd.matchmaker.client import MatchmakerClient, PendingRequest, open_client
from tipoff_matchmaker_httpd.matchmaker.feedback import Deadlines
from tipoff_shared.errors import Unavailable
from tipoff_shared.messages import ACKNOWLEDGED, PlayRequest
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.tasks import Tasks

READY = b'{"SessionReady":{"token":"t","ip":"1.2.3.4","port":5}}'


@pytest.fixture
async def client(nats: Bus) -> AsyncIterator[MatchmakerClient]:
    async with (
        Tasks("test") as tasks,
        open_client(nats, tasks, Deadlines(request=2, acknowledge=1, nats=0.3)) as client,
    ):
        yield client


def new_request(client: MatchmakerClient) -> PendingRequest:
    return client.request(PlayRequest("arena", "1", "127.0.0.1"), {"Tipoff-Request-Id": "x"})


async def everything(request: PendingRequest) -> list[bytes]:
    async with asyncio.timeout(5):
        return [message async for message in request]


@pytest.mark.row(21)
async def test_nobody_there_is_an_error_at_once(client: MatchmakerClient) -> None:
    """No responders is not a time-out."""
    request = new_request(client)
    await request.ask()
    assert await everything(request) == [b'{"Error":[503,"no matchmaker is running"]}']
    assert isinstance(request.failure, Unavailable)
    assert request.failure.retry_after


async def test_closing_forgets_the_request(client: MatchmakerClient) -> None:
    """Twice is once; late answers go nowhere."""
    request = new_request(client)
    request.close()
    request.close()
    await client.bus.publish(f"{request.inbox}.1", READY)
    await client.bus.flush()
    assert await everything(request) == []
    assert not client.pending


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
        open_client(bus, tasks, Deadlines(request=20, acknowledge=10, nats=8)) as client,
    ):
        asked: asyncio.Queue[Msg] = asyncio.Queue()

        async def receive(msg: Msg) -> None:
            asked.put_nowait(msg)

        await other.nc.subscribe(other.subjects.all_requests, queue="matchmakers", cb=receive)
        await other.flush()
        request = new_request(client)
        await request.ask()
        async with asyncio.timeout(15):
            first = await asked.get()
            await first.respond(ACKNOWLEDGED)
            assert await anext(request) == ACKNOWLEDGED
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
        assert await everything(request) == [READY]


async def test_a_retry_that_falls_into_an_outage_waits_for_its_end(own_nats: EmbeddedNats) -> None:
    """The patience for NATS holds, not the first try to publish; what was said before is no answer after it."""
    settings = own_nats.settings("outage")
    async with (
        connect(settings, name="httpd") as bus,
        connect(settings, name="matchmaker") as other,
        Tasks("test") as tasks,
        open_client(
            bus, tasks, Deadlines(request=20, acknowledge=10, nats=8, retry=0.2, silence=0.2)
        ) as client,
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
        request = new_request(client)
        await request.ask()
        async with asyncio.timeout(15):
            await (await asked.get()).respond(ACKNOWLEDGED)
            assert await anext(request) == ACKNOWLEDGED
            await kill(own_nats)
            await asyncio.sleep(0.6)  # several retries are due while NATS is away
            while not again.empty():
                again.get_nowait()
            await own_nats.start()
            # The repeated request itself stays unanswered, or reaches nobody where httpd reconnects first.
            await (await again.get()).respond(READY)
        assert (await everything(request))[-1] == READY


@pytest.mark.row(14)
async def test_a_long_outage_ends_in_a_typed_error(own_nats: EmbeddedNats) -> None:
    """Row 14: within two seconds for those who wait, at once for those who come."""
    async with (
        connect(own_nats.settings("outage"), name="httpd") as bus,
        Tasks("test") as tasks,
        open_client(bus, tasks, Deadlines(request=20, acknowledge=10, nats=0.5)) as client,
    ):
        await bus.nc.subscribe(bus.subjects.all_requests)  # somebody who never answers
        await bus.flush()
        waiting = new_request(client)
        await waiting.ask()
        await bus.flush()
        await kill(own_nats)
        async with asyncio.timeout(2):
            assert await everything(waiting) == [b'{"Error":[503,"NATS is away"]}']
            late = new_request(client)
            await late.ask()
            assert await everything(late) == [b'{"Error":[503,"NATS is away"]}']
        await own_nats.start()
