"""The allocator by itself: groups, and the waiting line. And the deadlines' heap."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World, games_of
from tipoff_matchmaker.allocators.interface import Progress
from tipoff_matchmaker.allocators.room_filling import RoomFilling
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_matchmaker.seats.waiting_line import WaitingLine
from tipoff_matchmaker.service import Matchmaker
from tipoff_matchmaker.sessions.deadlines import Deadlines
from tipoff_matchmaker.settings import Settings
from tipoff_matchmaker.tokens import Tokens
from tipoff_shared.errors import UnknownGame
from tipoff_shared.games import GameKey
from tipoff_shared.records import SessionState

TWO = msgspec.structs.replace(ARENA, min_ready=2, empty_ttl=60, max_deployments=2)


def group(*members: str) -> AllocationRequest:
    return AllocationRequest(members[0], members, "arena", "1")


async def _allocate(matchmaker: Matchmaker, allocation: AllocationRequest) -> Seats:
    async with (
        asyncio.timeout(5),
        aclosing(matchmaker.parts.router.of(ARENA.key).allocate(allocation)) as steps,
    ):
        async for step in steps:
            if isinstance(step, Seats):
                return step
    raise AssertionError("no seats")


async def test_a_group_sits_together(world: World) -> None:
    """Three do not fit beside two of four: all go to the other server."""
    async with world.matchmaker(TWO, seat_hold=30) as matchmaker:
        await world.servers_ready(2)
        first = await _allocate(matchmaker, group("a", "b"))
        second = await _allocate(matchmaker, group("c", "d", "e"))
        assert second.deployment.id != first.deployment.id
        third = await _allocate(matchmaker, group("f", "g"))
        assert third.deployment.id == first.deployment.id
        await matchmaker.parts.router.of(ARENA.key).undo(second)
        await matchmaker.parts.router.of(ARENA.key).undo(second)
        assert await matchmaker.parts.router.of(ARENA.key).sessions() == {"a", "b", "f", "g"}


async def test_an_allocation_closed_early_gives_back_what_it_holds(world: World) -> None:
    """Whoever stops waiting leaves the line, and a seat on its way to him is free again."""
    one = msgspec.structs.replace(TWO, seats=1, min_ready=1, max_deployments=1)
    async with world.matchmaker(one, seat_hold=30) as matchmaker:
        await world.servers_ready(1)
        held = await _allocate(matchmaker, group("a"))
        async with aclosing(matchmaker.parts.router.of(ARENA.key).allocate(group("b"))) as steps:
            assert isinstance(await anext(steps), Progress)
            assert len(matchmaker.parts.lines[one.key]) == 1
        assert len(matchmaker.parts.lines[one.key]) == 0
        await matchmaker.parts.router.of(ARENA.key).undo(held)
        claim = asyncio.ensure_future(_allocate(matchmaker, group("c")))
        await asyncio.sleep(0)  # its seat is being written
        claim.cancel()
        await asyncio.wait([claim])
        assert (await _allocate(matchmaker, group("d"))).members == ("d",)


async def goes_while_a_seat_is_written(fleet: Fleet, meanwhile: Callable[[], Awaitable[object]]) -> None:
    """A player who asks and goes; then what is `meanwhile` happens, and then its seat is written."""
    await fleet.server()
    fleet.parts.trust.add("one")
    bucket = fleet.world.buckets.deployments
    update = bucket.update
    writing, gate = asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **options: Any) -> int:
        writing.set()
        await gate.wait()
        return await update(*args, **options)

    bucket.update = slow  # type: ignore[method-assign]
    steps = fleet.parts.router.of(ARENA.key).allocate(group("a"))
    going = asyncio.ensure_future(anext(steps))
    await writing.wait()
    going.cancel()
    await asyncio.wait((going,))
    await steps.aclose()
    await meanwhile()
    gate.set()


async def test_who_goes_while_a_seat_is_written_leaves_it_to_the_next(fleet: Fleet) -> None:
    """The seat is taken back as soon as it is written."""

    async def nothing() -> None:
        pass

    await goes_while_a_seat_is_written(fleet, nothing)
    await fleet.world.eventually(lambda: fleet.record().empty_since > 0, "it was written and taken back")
    assert fleet.record().seats == {}


async def test_who_goes_while_a_seat_is_lost_does_not_stand_in_line_again(fleet: Fleet) -> None:
    async def lock() -> None:
        entry = await fleet.world.buckets.deployments.get("one")
        assert entry is not None
        await fleet.world.buckets.deployments.put("one", msgspec.structs.replace(entry.value, locked=True))

    await goes_while_a_seat_is_written(fleet, lock)
    await fleet.settled()
    assert fleet.record().locked
    assert fleet.record().seats == {}
    assert len(fleet.parts.lines[ARENA.key]) == 0


async def test_a_lost_race_leads_to_another_server_without_a_word(fleet: Fleet) -> None:
    """The player waits for nothing, so it is told nothing and no server is wanted."""
    for id in ("one", "two"):
        await fleet.server(id=id)
        fleet.parts.trust.add(id)
    entry = await fleet.world.buckets.deployments.get("one")
    assert entry is not None
    await fleet.world.buckets.deployments.put("one", msgspec.structs.replace(entry.value, locked=True))
    async with asyncio.timeout(20), aclosing(fleet.parts.router.of(ARENA.key).allocate(group("a"))) as steps:
        first = await anext(steps)
    assert isinstance(first, Seats)
    assert first.deployment.id == "two"


async def test_what_a_player_waits_for_is_told_as_it_is(world: World) -> None:
    """For a promised seat, as long as there is an empty room that it could open; then for a server."""
    rooms = msgspec.structs.replace(ARENA, seats=2, fill_rooms=True, max_deployments=2)
    world.announce = False
    async with world.parts(rooms, progress_interval=0.05) as parts:
        fleet = Fleet(world, parts)
        until = time.time() + 30
        await fleet.server(capacity=2, seats={"x": until, "y": until})
        await fleet.server(id="two", capacity=2)
        for id in ("one", "two"):
            parts.trust.add(id)
        async with asyncio.timeout(20), aclosing(parts.router.of(ARENA.key).allocate(group("a"))) as steps:
            step = await anext(steps)
            assert isinstance(step, Progress)
            assert "has not connected yet" in step.text
            await parts.deployments.change("two", lambda record: msgspec.structs.replace(record, locked=True))
            step = await anext(steps)
            assert isinstance(step, Progress)
            assert "has not connected yet" not in step.text


async def test_who_fills_rooms_hears_which_game_has_a_promised_seat_less(world: World) -> None:
    """Once for each seat."""
    rooms = msgspec.structs.replace(ARENA, fill_rooms=True)
    async with world.parts() as parts:
        fleet = Fleet(world, parts)
        settings = Settings()
        filling = RoomFilling(
            parts.deployments,
            parts.sessions,
            parts.trust,
            parts.peers,
            Tokens(games_of(rooms), settings.gs_proxy_url),
            games_of(rooms),
            parts.tasks,
            settings,
            time.time,
        )
        heard: list[GameKey] = []
        filling.subscribe(heard.append)
        until = time.time() + 30
        await fleet.server(seats={"x": until, "y": until})
        parts.trust.add("one")
        assert not filling.may_open(ARENA.key, 2, staged=0)
        assert filling.may_open(ARENA.key, 3, staged=0)
        assert not filling.may_open(ARENA.key, 3, staged=1)
        await fleet.session("x", SessionState.ACTIVE)
        await fleet.session("y", SessionState.READY)
        for _ in range(2):
            await filling.check(ARENA.key)
        assert heard == [ARENA.key]
        assert filling.may_open(ARENA.key, 2, staged=0)
        assert not filling.may_open(ARENA.key, 1, staged=0)


async def test_who_waits_for_a_promised_seat_wakes_when_its_time_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every second: a matchmaker that is alone hears of each claim itself."""
    rooms = msgspec.structs.replace(ARENA, seats=2, fill_rooms=True, max_deployments=2)
    world.announce = False
    async with world.parts(rooms, progress_interval=600) as parts:
        fleet = Fleet(world, parts)
        read, reads = parts.sessions.read, []

        async def noted(session_id: str) -> object:
            reads.append(session_id)
            return await read(session_id)

        monkeypatch.setattr(parts.sessions, "read", noted)
        hold = Tokens(games_of(rooms)).hold(rooms) + parts.settings.claim_slack + 5
        until = time.time() + parts.settings.seat_hold - hold + 1.5
        await fleet.server(capacity=2, seats={"x": until, "y": until})
        await fleet.server(id="two", capacity=2)
        for id in ("one", "two"):
            parts.trust.add(id)
        async with asyncio.timeout(60), aclosing(parts.router.of(ARENA.key).allocate(group("a"))) as steps:
            step = await anext(steps)
            assert isinstance(step, Progress)
            assert "has not connected yet" in step.text
            while not isinstance(step, Seats):
                step = await anext(steps)
        assert step.deployment.id == "two"
        assert reads == []


async def test_an_unknown_game_has_no_seats(world: World) -> None:
    """The allocator says so by itself, too."""
    async with world.matchmaker() as matchmaker:
        with pytest.raises(UnknownGame):
            await _allocate(matchmaker, AllocationRequest("a", ("a",), "chess", "1"))


async def test_a_line_keeps_its_order() -> None:
    """Who is put back stands where he stood."""
    line = WaitingLine()
    first, second, third = (line.enter(group(name), 0.0) for name in "abc")
    assert line.pop() is first
    assert [line.position(second), line.position(third)] == [1, 2]
    line.put_back(first)
    assert line.first is first
    assert line.position(third) == 3
    line.remove(second)
    line.remove(second)
    assert line.players == 2


async def test_deadlines_come_in_order_and_may_be_moved_or_dropped() -> None:
    """The last word for a key counts."""
    due: list[str] = []
    all_due = asyncio.Event()

    async def happened(key: str) -> None:
        due.append(key)
        if key == "last":
            all_due.set()

    deadlines = Deadlines(time.time, happened)
    now = time.time()
    deadlines.add("last", now + 0.06)
    task = asyncio.create_task(deadlines.run())
    deadlines.add("moved", now + 0.01)
    deadlines.add("moved", now + 0.04)
    deadlines.add("dropped", now + 0.02)
    deadlines.add("first", now + 0.03)
    deadlines.drop("dropped")
    async with asyncio.timeout(5):
        await all_due.wait()
    assert due == ["first", "moved", "last"]
    assert deadlines.next() is None
    task.cancel()
    await asyncio.wait([task])
