"""A matchmaker process dies at each step of a session's life; the one that comes next finishes or undoes what it finds.

Real processes, real NATS; `FAILPOINT=F5` lets one die there, as kill -9 would.
"""

from __future__ import annotations

import time

import msgspec
import pytest

from tests.faults.matchmaker_processes import GAME, Processes
from tests.matchmaker.world import World
from tipoff_shared import names
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import SessionState

DIED = 137
PLACES = ("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8")

WARM = ("F1", "F5", "F6", "F7", "F8")
"""A free seat needs no record of waiting, and no start."""
GIVING_BACK = ("E1", "E2", "E3")


def points(names: tuple[str, ...], *quick: str) -> list[object]:
    """Parameters; those not in `quick` are slow."""
    return [pytest.param(name, id=name, marks=[] if name in quick else pytest.mark.slow) for name in names]


async def leave_no_trace(world: World, *played: SessionReady) -> None:
    """They connect, stay a moment and leave: then nothing is left, and no server was started twice."""
    for ready in played:
        await world.server_of(ready).connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
    for ready in played:
        await world.server_of(ready).disconnect(ready)
    await world.nothing_is_left(timeout=15)
    assert all(times == 1 for times in world.fake.started.values()), world.fake.started


async def one_session(world: World, ready: SessionReady) -> None:
    """One record, one seat (once what the dead one left has run out), one server for it."""
    assert list(await world.buckets.sessions.list()) == [ready.session_id]
    await world.eventually(lambda: world.seats_are([ready.session_id]), "one seat is taken")
    assert len(world.fake.started) == 1


@pytest.mark.row(23, 24, 25, 26, 27, 28, 29, 30)
@pytest.mark.parametrize("point", points(PLACES, "F5"))
async def test_the_restarted_matchmaker_goes_on_from_what_is_written(
    world: World, processes: Processes, point: str
) -> None:
    """Alone, it dies on a player's request; after its restart the same request id gets one seat and one client id."""
    dying = await processes.start(fail_at=point)
    request_id = names.new_request_id()
    first = await world.ask(request_id=request_id)
    assert await dying.dies() == DIED
    before = await world.session(names.session_id(request_id))
    await processes.start()
    ready = await world.play(request_id=request_id)
    assert before is None or before.client_id == ready.client_id
    answered = [said for said in first.seen_now() if isinstance(said, SessionReady)]
    assert bool(answered) is (point == "F8")
    assert all(said.client_id == ready.client_id for said in answered)
    await one_session(world, ready)
    await leave_no_trace(world, ready)


@pytest.mark.row(23, 24, 25, 26, 27, 28, 29, 30)
@pytest.mark.parametrize("point", points(PLACES))
async def test_another_matchmaker_takes_over_what_a_dead_one_began(
    world: World, processes: Processes, point: str
) -> None:
    """Two run; the one that has the request dies; asked again of all, the other one sees it through, and soon."""
    await processes.start(fail_at=point)
    survivor_starts = processes.start()
    request_id = names.new_request_id()
    await world.ask(request_id=request_id)  # while the one to die is alone
    survivor = await survivor_starts
    began = time.monotonic()
    ready = await world.play(request_id=request_id, again=True)
    assert time.monotonic() - began < 5, survivor.said
    await one_session(world, ready)
    await leave_no_trace(world, ready)


@pytest.mark.row(31, 32, 33)
@pytest.mark.parametrize("point", points(GIVING_BACK, "E1"))
async def test_what_was_being_given_back_is_given_back_after_a_restart(
    world: World, processes: Processes, point: str
) -> None:
    """It dies while a session, and then its server, ends: the next one ends both."""
    dying = await processes.start(fail_at=point)
    ready = await world.play()
    server = world.server_of(ready)
    await server.connect(ready)
    await world.session_becomes(ready.session_id, SessionState.ACTIVE)
    await server.disconnect(ready)
    assert await dying.dies() == DIED
    await processes.start()
    await world.nothing_is_left(timeout=15)
    record = await world.session(ready.session_id)
    assert record is not None
    assert record.reason == "the player left"


@pytest.mark.slow
@pytest.mark.parametrize("point", WARM)
async def test_a_warm_seat_that_a_dead_one_took_is_one_seat(
    world: World, processes: Processes, point: str
) -> None:
    """With a server that waits already: the request's steps are fewer, and no server is started for it."""
    warm = msgspec.structs.replace(GAME, min_ready=1, empty_ttl=60, max_deployments=2)
    dying = await processes.start(fail_at=point, game=warm)
    await world.servers_ready(1)
    request_id = names.new_request_id()
    await world.ask(request_id=request_id)
    assert await dying.dies() == DIED
    await processes.start(game=warm)
    ready = await world.play(request_id=request_id)
    await world.eventually(lambda: world.seats_are([ready.session_id]), "one seat is taken")
    await world.server_of(ready).connect(ready)
    await world.session_becomes(ready.session_id, SessionState.ACTIVE)
    await world.server_of(ready).disconnect(ready)
    await world.eventually(lambda: world.seats_are([]), "the seat is free again")
    assert all(times == 1 for times in world.fake.started.values())
