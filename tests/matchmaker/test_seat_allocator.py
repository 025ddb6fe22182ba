"""The allocator by itself: groups, and the waiting line. And the deadlines' heap."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import msgspec
import pytest

from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.allocators.interface import Progress
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_matchmaker.seats.waiting_line import WaitingLine
from tipoff_matchmaker.service import Matchmaker
from tipoff_matchmaker.sessions.deadlines import Deadlines
from tipoff_shared.errors import UnknownGame

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
