"""Several matchmaker processes, of which some stop answering or end: no player notices more than a pause."""

from __future__ import annotations

import asyncio
import signal
import time

import msgspec
import pytest

from tests.faults.matchmaker_processes import GAME, Processes
from tests.matchmaker.world import Answers, World
from tipoff_shared import names
from tipoff_shared.messages import (
    Acknowledged,
    Failed,
    ProgressReport,
    SessionReady,
    SessionRequestAccepted,
)
from tipoff_shared.records import SessionState

MANY = msgspec.structs.replace(GAME, seats=8, max_deployments=8, request_timeout=20)
UNHEARD = 2.0
"""Seconds without `Acknowledged` after which httpd asks everybody."""


async def play_as_httpd_does(world: World) -> SessionReady:
    """Ask; where nobody acknowledges, or who did falls silent, ask everybody; take the first answer."""
    request_id = names.new_request_id()
    attempts = [await world.ask(request_id=request_id)]
    heard = 0
    while True:
        try:
            return await _first_ready(attempts, UNHEARD)
        except TimeoutError:
            now_heard = sum(len(attempt.seen) for attempt in attempts)
            if now_heard == heard:
                attempts.append(await world.ask(request_id=request_id, again=True))
            heard = now_heard


async def _first_ready(attempts: list[Answers], timeout: float) -> SessionReady:
    async with asyncio.timeout(timeout):
        while True:
            for attempt in attempts:
                for said in attempt.seen_now():
                    if isinstance(said, SessionReady):
                        return said
                    assert not isinstance(said, Failed), said
            await asyncio.sleep(0.02)  # the inboxes are queues of their own


@pytest.mark.row(34)
async def test_a_request_to_a_stopped_matchmaker_is_seen_through_by_the_other(
    world: World, processes: Processes
) -> None:
    """Stopped with the request in hand, it is taken over; when it goes on, it changes nothing."""
    world.fake.start_delay = 1.0
    stopped = await processes.start()
    request_id = names.new_request_id()
    first = await world.ask(request_id=request_id)
    await first.until(ProgressReport)
    await processes.start()
    stopped.pause()
    ready = await world.play(request_id=request_id, again=True)
    stopped.resume()
    await world.server_of(ready).connect(ready)
    late = await first.end()
    assert not isinstance(late, SessionReady) or late.client_id == ready.client_id
    await world.session_becomes(ready.session_id, SessionState.ACTIVE)
    await world.eventually(lambda: world.seats_are([ready.session_id]), "one seat")
    assert len(await world.buckets.sessions.list()) == 1
    assert len(world.fake.started) == 1


@pytest.mark.slow
@pytest.mark.row(34)
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_with_one_of_three_gone_every_one_of_fifty_players_is_served(
    world: World, processes: Processes, how: str
) -> None:
    """They come while it goes; a seat for each, within its deadline, and all is given back afterwards."""
    victim = await processes.start(game=MANY)
    await asyncio.gather(*(processes.start(game=MANY) for _ in range(2)))
    players = [asyncio.create_task(play_as_httpd_does(world)) for _ in range(25)]
    await asyncio.sleep(0)
    victim.pause() if how == "stopped" else victim.kill()
    players += [asyncio.create_task(play_as_httpd_does(world)) for _ in range(25)]
    async with asyncio.timeout(20):
        ready = await asyncio.gather(*players)
    assert len({one.client_id for one in ready}) == 50
    for one in ready:
        await world.server_of(one).connect(one)
    if how == "stopped":
        victim.resume()
    await world.eventually(lambda: world.seats_are([one.session_id for one in ready]), "a seat for each")
    for one in ready:
        await world.server_of(one).disconnect(one)
    await world.nothing_is_left(timeout=20)
    assert len(world.fake.started) <= MANY.max_deployments


async def test_everybody_acknowledges_and_one_answers(world: World, processes: Processes) -> None:
    """A request asked of three: three acknowledge, one of them looks for the seat, one token goes out."""
    for _ in range(3):
        await processes.start()
    answers = await world.ask(again=True)
    ready = await answers.until(SessionReady)
    assert isinstance(ready, SessionReady)
    # Whoever watches knows after a period of silence that it has nothing to say.
    await asyncio.sleep(1.0)  # so long that a second answer would have come
    said = answers.seen_now()
    assert sum(isinstance(one, Acknowledged) for one in said) == 3
    assert sum(isinstance(one, SessionReady) for one in said) == 1
    assert not any(isinstance(one, Failed) for one in said)
    await world.eventually(lambda: world.seats_are([ready.session_id]), "one seat")


@pytest.mark.row(36)
@pytest.mark.slow
async def test_twenty_duplicates_at_three_matchmakers_make_one_session(
    world: World, processes: Processes
) -> None:
    """The same request id twenty times at once, to one or to all: one create, one client id, one seat."""
    for _ in range(3):
        await processes.start()
    request_id = names.new_request_id()
    asked = [await world.ask(request_id=request_id, again=number % 2 == 1) for number in range(20)]
    ready = [await answers.until(SessionReady) for answers in asked]
    assert len({one.client_id for one in ready if isinstance(one, SessionReady)}) == 1
    session_id = names.session_id(request_id)
    await world.eventually(lambda: world.seats_are([session_id]), "one seat")
    assert list(await world.buckets.sessions.list()) == [session_id]
    assert len(world.fake.started) == 1


@pytest.mark.row(35)
@pytest.mark.slow
async def test_a_terminated_matchmaker_leaves_its_requests_to_the_other(
    world: World, processes: Processes
) -> None:
    """SIGTERM: it ends within 10 s, tells who waits to ask again, and asked again the other one serves at once."""
    world.announce = False  # no server is ready before the test says so
    ending = await processes.start()
    request_id = names.new_request_id()
    first = await world.ask(request_id=request_id)
    await first.until(ProgressReport)
    await processes.start()
    began = time.monotonic()
    ending.process.send_signal(signal.SIGTERM)
    told = await first.end()
    assert isinstance(told, Failed)
    assert told.code == 503
    again = await world.ask(request_id=request_id)
    await again.until(SessionRequestAccepted)
    await world.announce_all()
    ready = await again.until(SessionReady)
    assert isinstance(ready, SessionReady)
    assert await ending.dies() == 0
    assert time.monotonic() - began < 10
    await world.eventually(lambda: world.seats_are([ready.session_id]), "one seat")
    assert len(world.fake.started) == 1
