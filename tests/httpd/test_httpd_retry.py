"""A matchmaker that does not answer: all are asked, with the same request id; a player who leaves is reported."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats.aio.msg import Msg

from tipoff_matchmaker_httpd.matchmaker.client import MatchmakerClient, PendingRequest, open_client
from tipoff_matchmaker_httpd.matchmaker.feedback import Deadlines
from tipoff_shared.errors import NoServerInTime, Unavailable
from tipoff_shared.messages import ACKNOWLEDGED, PlayRequest
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks

READY = b'{"SessionReady":{"token":"t","ip":"1.2.3.4","port":5}}'
PROGRESS = b'{"ProgressReport":"soon"}'
WAIT = 5.0


class Matchmakers:
    """What reaches the matchmakers: `first` by the queue group, `again` all of them, `left` who does not wait."""

    def __init__(self) -> None:
        self.first: asyncio.Queue[Msg] = asyncio.Queue()
        self.again: asyncio.Queue[Msg] = asyncio.Queue()
        self.left: asyncio.Queue[str] = asyncio.Queue()

    @asynccontextmanager
    async def listening(self, bus: Bus) -> AsyncIterator[Matchmakers]:
        async def first(msg: Msg) -> None:
            self.first.put_nowait(msg)

        async def again(msg: Msg) -> None:
            self.again.put_nowait(msg)

        async def left(msg: Msg) -> None:
            self.left.put_nowait(msg.data.decode())

        subjects = bus.subjects
        subs = [
            await bus.nc.subscribe(subjects.all_requests, queue="matchmakers", cb=first),
            await bus.nc.subscribe(subjects.all_retries, cb=again),
            await bus.nc.subscribe(subjects.left, cb=left),
        ]
        await bus.flush()
        try:
            yield self
        finally:
            for sub in subs:
                await sub.unsubscribe()


@pytest.fixture
async def matchmakers(nats: Bus) -> AsyncIterator[Matchmakers]:
    async with Matchmakers().listening(nats) as both:
        yield both


@asynccontextmanager
async def client_on(bus: Bus, **changes: float) -> AsyncIterator[MatchmakerClient]:
    times = {"request": 3.0, "acknowledge": 1.5, "nats": 0.3, "retry": 0.15, "silence": 0.3} | changes
    async with Tasks("test") as tasks, open_client(bus, tasks, Deadlines(**times)) as client:
        yield client


async def asked(client: MatchmakerClient) -> PendingRequest:
    request = client.request(PlayRequest("arena", "1", "127.0.0.1"), {"Tipoff-Request-Id": "x"})
    await request.ask()
    return request


async def everything(request: PendingRequest) -> list[bytes]:
    async with asyncio.timeout(WAIT):
        return [message async for message in request]


async def next_of(queue: asyncio.Queue[Any]) -> Any:
    async with asyncio.timeout(WAIT):
        return await queue.get()


@pytest.mark.row(34)
async def test_without_acknowledgement_all_matchmakers_are_asked(nats: Bus, matchmakers: Matchmakers) -> None:
    """The same request and request id, another inbox, less time left."""
    async with client_on(nats) as client:
        request = await asked(client)
        first, again = await next_of(matchmakers.first), await next_of(matchmakers.again)
        assert again.subject == nats.subjects.retry("arena", "1")
        assert again.data == first.data
        assert again.reply != first.reply
        assert again.headers["Tipoff-Request-Id"] == first.headers["Tipoff-Request-Id"] == "x"
        assert float(again.headers["Tipoff-Timeout"]) < float(first.headers["Tipoff-Timeout"]) < 3.0
        for msg in (again, again):  # two who have heard it
            await msg.respond(ACKNOWLEDGED)
        await again.respond(READY)
        assert await everything(request) == [ACKNOWLEDGED, READY]
        assert matchmakers.first.empty()


@pytest.mark.row(34)
async def test_while_one_is_deaf_the_others_are_asked_sooner(nats: Bus, matchmakers: Matchmakers) -> None:
    """Half of all players would wait the whole time for it otherwise."""
    async with client_on(nats, retry=0.5) as client:
        for longest in (0.6, 0.2):
            began = client.loop.time()
            request = await asked(client)
            again = await next_of(matchmakers.again)
            assert client.loop.time() - began < longest
            for message in (ACKNOWLEDGED, READY):
                await again.respond(message)
            await everything(request)


@pytest.mark.row(34)
async def test_who_falls_silent_is_not_waited_for(nats: Bus, matchmakers: Matchmakers) -> None:
    """It had acknowledged, and was stopped or died then."""
    async with client_on(nats) as client:
        request = await asked(client)
        first = await next_of(matchmakers.first)
        for message in (ACKNOWLEDGED, PROGRESS):
            await first.respond(message)
        again = await next_of(matchmakers.again)
        for message in (ACKNOWLEDGED, PROGRESS, READY):
            await again.respond(message)
        told = b'{"ProgressReport":"The matchmaker is silent: asking the others"}'
        assert await everything(request) == [ACKNOWLEDGED, PROGRESS, told, PROGRESS, READY]


async def test_who_goes_on_talking_is_waited_for(nats: Bus, matchmakers: Matchmakers) -> None:
    """However long it takes: no other matchmaker is asked."""
    async with client_on(nats) as client:
        request = await asked(client)
        first = await next_of(matchmakers.first)
        await first.respond(ACKNOWLEDGED)
        for _ in range(8):
            await asyncio.sleep(0.1)  # time is what is tested
            await first.respond(PROGRESS)
        await first.respond(READY)
        assert (await everything(request))[-1] == READY
        assert matchmakers.again.empty()


async def test_an_error_counts_unless_another_attempt_shows_life(nats: Bus, matchmakers: Matchmakers) -> None:
    """The first one asked was only slow: it is alive, so the second one's error is not the end."""
    async with client_on(nats, silence=2.0) as client:
        request = await asked(client)
        first, again = await next_of(matchmakers.first), await next_of(matchmakers.again)
        await first.respond(ACKNOWLEDGED)
        await again.respond(b'{"Error":[409,"no"]}')
        await again.respond(b"")
        await first.respond(READY)
        assert await everything(request) == [ACKNOWLEDGED, READY]


async def test_the_error_of_the_only_one_who_answers_is_the_end(nats: Bus, matchmakers: Matchmakers) -> None:
    """A silent attempt does not keep it back."""
    async with client_on(nats) as client:
        request = await asked(client)
        again = await next_of(matchmakers.again)
        await again.respond(b'{"Error":[404,"no"]}')
        assert await everything(request) == [b'{"Error":[404,"no"]}']


async def test_one_that_stops_hands_its_players_on(nats: Bus, matchmakers: Matchmakers) -> None:
    """In order, by SIGTERM: the others are asked at once, and its error is not the player's."""
    async with client_on(nats, silence=2.0, retry=2.0, request=4.0) as client:
        request = await asked(client)
        first = await next_of(matchmakers.first)
        await first.respond(ACKNOWLEDGED)
        headers = {"Tipoff-Ask-Again": "1", "Retry-After": "1"}
        await nats.nc.publish(first.reply, b'{"Error":[503,"stopping"]}', headers=headers)
        await first.respond(b"")
        async with asyncio.timeout(1):
            again = await matchmakers.again.get()
        await again.respond(READY)
        assert await everything(request) == [ACKNOWLEDGED, READY]


async def test_when_nobody_ever_answers_it_ends_in_time(nats: Bus, matchmakers: Matchmakers) -> None:
    """All are asked again and again, and at last hear that the player has left."""
    async with client_on(nats, acknowledge=0.7) as client:
        request = await asked(client)
        first = await next_of(matchmakers.first)
        assert await everything(request) == [b'{"Error":[503,"no matchmaker answers"]}']
        assert isinstance(request.failure, Unavailable)
        assert matchmakers.again.qsize() in (3, 4)
        assert first.reply.startswith(await next_of(matchmakers.left) + ".")


async def test_one_that_is_just_being_restarted_is_waited_for(nats: Bus) -> None:
    """It died with the request; for a moment no matchmaker listens."""
    async with client_on(nats, acknowledge=3.0) as client:
        async with Matchmakers().listening(nats) as before:
            request = await asked(client)
            await next_of(before.first)
        await asyncio.sleep(0.4)  # the time in which there is none
        async with Matchmakers().listening(nats) as after:
            again = await next_of(after.again)
            await again.respond(READY)
            assert await everything(request) == [READY]


async def test_the_deadline_holds_for_all_attempts_together(nats: Bus, matchmakers: Matchmakers) -> None:
    async with client_on(nats, request=0.5) as client:
        request = await asked(client)
        await (await next_of(matchmakers.again)).respond(ACKNOWLEDGED)
        assert (await everything(request))[0] == ACKNOWLEDGED
        assert isinstance(request.failure, NoServerInTime)


async def test_a_player_who_leaves_is_reported(
    start: Any, nats: Bus, matchmakers: Matchmakers, connect_ws: Any
) -> None:
    """So that no seat is kept free for them; a player who has an answer is not reported."""
    httpd = await start()
    async with connect_ws(httpd) as socket:
        await socket.send('{"game":"arena","version":"1"}')
        first = await next_of(matchmakers.first)
        await first.respond(READY)
        await socket.wait_closed()
    async with connect_ws(httpd) as socket:
        await socket.send('{"game":"arena","version":"1"}')
        second = await next_of(matchmakers.first)
        await second.respond(ACKNOWLEDGED)
        await socket.recv()
    assert second.reply.startswith(await next_of(matchmakers.left) + ".")
    assert matchmakers.left.empty()


async def test_a_stopped_matchmaker_costs_a_player_two_seconds(
    start: Any, matchmakers: Matchmakers, ask: Any
) -> None:
    """Through the whole httpd, with its real times."""
    httpd = await start(retry_timeout=2.0, acknowledge_timeout=10.0, ping_interval=10.0)
    player = asyncio.create_task(ask(httpd))
    again = await next_of(matchmakers.again)
    for message in (ACKNOWLEDGED, READY):
        await again.respond(message)
    got = await player
    assert got.code == 1000
    assert got.messages[0] == "Acknowledged"
    assert 1.9 < got.seconds < 2.8
