"""The allocator of Edgegap's sessions: groups, giving back, and matchmakers that die in between."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

import pytest

from tests.edgegap.edgegap_world import EdgegapWorld, leave, sleeper, with_sessions
from tests.matchmaker.world import failed
from tipoff_edgegap_emulator import Fail, Rules, Silent
from tipoff_matchmaker.allocators.interface import Allocator, Progress
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_shared import names
from tipoff_shared.errors import SlowDown, Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.messages import ProgressReport, SessionReady
from tipoff_shared.records import SessionState

pytestmark = pytest.mark.slow

Edgegap = Callable[..., Any]
SEAT = with_sessions(sleeper(empty_ttl=60.0))
MATCH = with_sessions(sleeper(empty_ttl=60.0), "match")


def allocator(world: EdgegapWorld) -> Allocator:
    (game,) = world.games.all()
    return world.matchmakers[0].parts.router.of(game.key)


def group(*members: str) -> AllocationRequest:
    return AllocationRequest(members[0], members, "arena", "1", ("8.8.4.4", "1.1.1.1"))


async def allocate(world: EdgegapWorld, allocation: AllocationRequest) -> Seats:
    async with asyncio.timeout(8), aclosing(allocator(world).allocate(allocation)) as steps:
        async for step in steps:
            if isinstance(step, Seats):
                return step
    raise AssertionError("no seats")


async def test_a_group_of_seats_sits_on_one_server(edgegap: Edgegap) -> None:
    """One session for each, three sockets of one deployment; each seat goes back by itself."""
    async with edgegap(SEAT, changes={"seat_hold": 30.0}) as world:
        await allocate(world, group("x"))
        seats = await allocate(world, group("a", "b", "c"))
        assert set(seats.deployment.seats) >= {"a", "b", "c"}
        assert len(world.emulator.sessions) == 4
        assert len({session.deployment_id for session in world.emulator.sessions}) == 1
        assert await allocator(world).sessions() == {"x", "a", "b", "c"}
        await allocator(world).release("a", "a", deployment_id=seats.deployment.id)
        assert len(world.emulator.sessions) == 3
        assert await allocator(world).sessions() == {"x", "b", "c"}


async def test_a_group_that_does_not_fit_beside_others_goes_elsewhere(edgegap: Edgegap) -> None:
    """Together: two places are free where the first of three would sit."""
    async with edgegap(SEAT, changes={"seat_hold": 30.0}) as world:
        first = await allocate(world, group("x", "y"))
        seats = await allocate(world, group("a", "b", "c"))
        assert seats.deployment.id != first.deployment.id
        assert await allocator(world).sessions() == {"x", "y", "a", "b", "c"}
        for member in "abc":
            await allocator(world).release("a", member, deployment_id=seats.deployment.id)
        assert await allocator(world).sessions() == {"x", "y"}
        assert len(world.emulator.sessions) == 2


async def test_a_match_is_one_session_until_the_last_one_leaves(edgegap: Edgegap) -> None:
    """And giving back twice, or what was never had, is nothing."""
    async with edgegap(MATCH, changes={"seat_hold": 30.0}) as world:
        seats = await allocate(world, group("a", "b", "c"))
        (session,) = world.emulator.sessions
        for member in ("a", "b", "b"):
            await allocator(world).release("a", member, deployment_id=seats.deployment.id)
        assert world.emulator.sessions == [session]
        assert await allocator(world).sessions() == {"c"}
        await asyncio.gather(
            *(allocator(world).release("a", m, deployment_id=seats.deployment.id) for m in ("c", "a", "c"))
        )
        assert world.emulator.sessions == []
        assert await world.buckets.edgegap_sessions.list() == {}
        await allocator(world).release("nobody", "nobody", deployment_id="")


async def test_the_last_two_of_a_match_may_leave_at_once(edgegap: Edgegap) -> None:
    """The later release sees that no member is left, and deletes the session."""
    async with edgegap(MATCH, changes={"seat_hold": 30.0}) as world:
        seats = await allocate(world, group(*"abcd"))
        await asyncio.gather(
            *(allocator(world).release("a", m, deployment_id=seats.deployment.id) for m in "abcd")
        )
        assert world.emulator.sessions == []
        assert await world.buckets.edgegap_sessions.list() == {}


@pytest.mark.parametrize("game", [SEAT, MATCH], ids=["seat", "match"])
async def test_who_stops_waiting_leaves_nothing(edgegap: Edgegap, game: Any) -> None:
    """Whether the session was asked for, was on its way or had a server already."""
    async with edgegap(game, rules=Rules(start_delay=0.4)) as world:
        for pause in (0.0, 0.05, 0.3):
            async with aclosing(allocator(world).allocate(group("a", "b"))) as steps:
                assert isinstance(await anext(steps), Progress)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        async for step in steps:
                            if isinstance(step, Seats):  # the server of the one before still stands there
                                await allocator(world).undo(step)
            await world.no_session_is_left()


async def test_who_stops_waiting_for_room_is_not_waited_for_any_more(edgegap: Edgegap) -> None:
    """No session is created for a player who has gone: it could start a server without players."""
    async with edgegap(SEAT) as world:
        world.emulator.misbehave("session.create", Fail(422, retry_after=0.0))
        async with aclosing(allocator(world).allocate(group("a"))) as steps:
            assert isinstance(await anext(steps), Progress)
            following = asyncio.ensure_future(anext(steps))
            await world.emulator.until(lambda e: e.count("session.create") >= 1)
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
        async with asyncio.timeout(5):
            await allocator(world).settle(timeout=10)
        world.emulator.behave()
        assert world.emulator.sessions == []


async def test_a_session_that_cannot_be_written_down_is_closed(
    edgegap: Edgegap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NATS went away between creating and writing it: nothing would refer to it."""
    async with edgegap(SEAT) as world:
        create = Bucket.create

        async def away(bucket: Bucket[Any], *args: Any, **more: Any) -> int:
            if bucket.bucket.endswith("edgegap_sessions"):
                raise Unavailable("NATS is away")
            return await create(bucket, *args, **more)

        with monkeypatch.context() as patched:
            patched.setattr(Bucket, "create", away)
            with pytest.raises(Unavailable, match="NATS is away"):
                await allocate(world, group("a"))
        assert world.emulator.count("session.create") == 1
        assert world.emulator.sessions == []


async def test_an_ask_that_was_let_go_does_not_take_the_next_ones_seat(
    edgegap: Edgegap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its create is answered late, when the same request has led to a seat by another way: that one stays."""
    async with edgegap(SEAT, changes={"seat_hold": 30.0}) as world:
        at_edgegap = allocator(world)
        create = EdgegapClient.create_session
        late = asyncio.Event()

        async def slow(client: EdgegapClient, *args: Any, **more: Any) -> str:
            await late.wait()
            return await create(client, *args, **more)

        with monkeypatch.context() as patched:
            patched.setattr(EdgegapClient, "create_session", slow)
            async with aclosing(at_edgegap.allocate(group("a"))) as steps:
                assert isinstance(await anext(steps), Progress)
                following = asyncio.ensure_future(anext(steps))
                await asyncio.sleep(0.1)  # it waits for its create by then
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following
        await allocate(world, group("a"))
        (session,) = world.emulator.sessions
        late.set()
        await at_edgegap.settle(timeout=5)
        await world.emulator.until(lambda e: e.count("session.delete") >= 1)
        await asyncio.sleep(0.2)  # whatever else would follow
        assert world.emulator.sessions == [session]
        assert await at_edgegap.sessions() == {"a"}


async def test_the_same_request_twice_is_one_session(edgegap: Edgegap) -> None:
    """Also of two matchmakers, one after the other, and at once."""
    async with edgegap(SEAT) as world, world.another_matchmaker():
        request_id = names.new_request_id()
        asked = [await world.ask(request_id=request_id, again=number > 0) for number in range(4)]
        ready = [answer for each in asked if isinstance(answer := await each.end(), SessionReady)]
        assert ready
        assert len({seat.client_id for seat in ready}) == 1
        assert len(world.emulator.sessions) == 1
        assert world.emulator.count("session.create") == 1


async def test_the_next_matchmaker_goes_on_with_a_session(edgegap: Edgegap) -> None:
    """The matchmaker that created it stops in order: its player asks elsewhere, and the session is kept."""
    async with edgegap(SEAT, matchmaker=False, rules=Rules(start_delay=1.5)) as world:
        request_id = names.new_request_id()
        async with world.another_matchmaker():
            answers = await world.ask(request_id=request_id)
            await answers.until(ProgressReport)
            await world.emulator.until(lambda e: len(e.sessions) == 1)
        assert failed(await answers.end()).code == 503
        (session,) = world.emulator.sessions
        async with world.another_matchmaker():
            assert isinstance(await world.play(request_id=request_id), SessionReady)
            assert world.emulator.sessions == [session]


async def test_a_session_whose_request_ended_is_closed_by_whoever_finds_it(edgegap: Edgegap) -> None:
    """The matchmaker died between asking and being answered: the record's deadline passes, and the session goes."""
    async with edgegap(SEAT, matchmaker=False, rules=Rules(start_delay=60)) as world:
        request_id = names.new_request_id()
        async with world.another_matchmaker(drain_timeout=0.1):
            answers = await world.ask(request_id=request_id, timeout=1.5)
            await answers.until(ProgressReport)
            await world.emulator.until(lambda e: len(e.sessions) == 1)
        assert len(world.emulator.sessions) == 1
        async with world.another_matchmaker():
            await world.session_becomes(names.session_id(request_id), SessionState.GONE)
            await world.no_session_is_left()


async def test_a_session_without_an_answer_is_not_asked_for_twice(edgegap: Edgegap) -> None:
    """The first could not be found; the player gets an error, and the next one plays."""
    async with edgegap(SEAT, timeout=0.4) as world:
        world.emulator.misbehave("session.create", Silent(carried_out_after=None), times=1)
        error = failed(await (await world.ask()).end())
        assert error.code == 502
        assert world.emulator.count("session.create") == 1
        assert isinstance(await world.play(), SessionReady)


async def test_a_server_that_ended_under_a_session_costs_its_player_a_retry(edgegap: Edgegap) -> None:
    """The session is given back, and another one leads to another server."""
    async with edgegap(SEAT, rules=Rules(start_delay=0.6)) as world:
        answers = await world.ask()
        await world.emulator.until(lambda e: len(e.state.living()) == 1)
        (first,) = world.alive
        world.emulator.vanish(first.request_id)
        ready = await answers.end()
        assert isinstance(ready, SessionReady)
        assert ready.deployment_id != first.request_id
        assert len(world.emulator.sessions) == 1


async def test_status_calls_that_fail_cost_time_and_no_seat(edgegap: Edgegap) -> None:
    """The session is polled again."""
    async with edgegap(SEAT) as world:
        for operation in ("session.get", "sessions", "status"):
            world.emulator.misbehave(operation, Fail(500), times=2)
        ready = await world.play()
        assert world.emulator.count("session.create") == 1
        await leave(world, world.bus, ready.session_id)
        await world.no_session_is_left()


@pytest.mark.row(67)
async def test_one_address_makes_no_more_sessions_than_its_share(edgegap: Edgegap) -> None:
    """Each session at Edgegap is one to pay for: who asks beyond the share is told when to ask again, at once."""
    async with edgegap(SEAT, changes={"unclaimed_per_address": 2, "seat_hold": 30.0}) as world:
        for name in "ab":
            await allocate(world, group(name))
        with pytest.raises(SlowDown, match="2 players at your address"):
            await allocate(world, group("c"))
        assert len(world.emulator.sessions) == 2
        other = AllocationRequest("d", ("d",), "arena", "1", ("9.9.9.9",))
        seats = await allocate(world, other)
        await allocator(world).undo(seats)
        await allocate(world, AllocationRequest("e", ("e",), "arena", "1"))
