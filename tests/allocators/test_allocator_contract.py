"""What every `Allocator` promises: `SeatAllocator` on fake servers and at Edgegap, and `EdgegapSessions`. Edgegap is
the emulator, with real processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.edgegap.edgegap_world import EdgegapWorld, sleeper, with_sessions
from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.allocators.interface import Allocator, Progress
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_shared.errors import UnknownGame
from tipoff_shared.nats.connection import connect
from tipoff_shared.settings import NatsSettings

pytestmark = pytest.mark.slow

CHANGES = {"seat_hold": 30.0, "orphan_grace": 30.0}
"""No seat here has a session record: only its own deadline counts."""


@dataclass
class Place:
    """One allocator, with what must be empty when everything has been given back."""

    world: World
    allocator: Allocator
    held: Callable[[], Awaitable[set[str]]]

    async def seat(self, *members: str, version: str = "1") -> Seats:
        allocation = AllocationRequest(members[0], members, "arena", version, ("203.0.113.7",))
        async with asyncio.timeout(8), aclosing(self.allocator.allocate(allocation)) as steps:
            async for step in steps:
                if isinstance(step, Seats):
                    return step
        raise AssertionError("it ended without seats")

    async def release(self, seats: Seats, member: str) -> None:
        await self.allocator.release(seats.members[0], member, deployment_id=seats.deployment.id)

    async def holds(self, *members: str) -> None:
        async def as_said() -> bool:
            return await self.held() == set(members)

        await self.world.eventually(as_said, f"exactly {members} have seats")


@asynccontextmanager
async def by_our_ledger(settings: NatsSettings, tmp_path: Path) -> AsyncIterator[Place]:
    game = msgspec.structs.replace(ARENA, empty_ttl=60)
    async with (
        connect(settings, name="world") as bus,
        World(bus, settings) as world,
        world.matchmaker(game, **CHANGES) as matchmaker,
    ):
        yield Place(world, matchmaker.parts.router.of(game.key), lambda: _in_the_ledger(world))


@asynccontextmanager
async def by_our_ledger_at_edgegap(settings: NatsSettings, tmp_path: Path) -> AsyncIterator[Place]:
    game = sleeper(empty_ttl=60.0)
    async with EdgegapWorld.running(settings, tmp_path, game, changes=CHANGES) as world:
        allocator = world.matchmakers[0].parts.router.of(game.key)
        yield Place(world, allocator, lambda: _in_the_ledger(world))


@asynccontextmanager
async def by_edgegaps_sessions(settings: NatsSettings, tmp_path: Path) -> AsyncIterator[Place]:
    game = with_sessions(sleeper(empty_ttl=60.0))
    async with EdgegapWorld.running(settings, tmp_path, game, changes=CHANGES) as world:
        allocator = world.matchmakers[0].parts.router.of(game.key)

        async def held() -> set[str]:
            told = await allocator.sessions()
            assert told is not None
            assert len(world.emulator.sessions) == len(told)  # Edgegap counts the same
            return told

        yield Place(world, allocator, held)


async def _in_the_ledger(world: World) -> set[str]:
    return {seat for record in await world.deployments() for seat in record.seats}


@pytest.fixture(params=[by_our_ledger, by_our_ledger_at_edgegap, by_edgegaps_sessions])
async def place(
    request: pytest.FixtureRequest, settings: NatsSettings, tmp_path: Path
) -> AsyncIterator[Place]:
    async with request.param(settings, tmp_path) as place:
        yield place


async def test_progress_comes_before_anything_is_started(place: Place) -> None:
    """So that a record can be written first; the seats come last."""
    steps = []
    async with asyncio.timeout(8), aclosing(place.allocator.allocate(_of("a"))) as allocated:
        async for step in allocated:
            if not steps:
                assert await place.world.deployments() == []
            steps.append(step)
    assert isinstance(steps[0], Progress)
    assert isinstance(steps[-1], Seats)
    assert steps[-1].members == ("a",)


async def test_a_group_sits_on_one_server_or_waits(place: Place) -> None:
    """All or none; each seat is written down where it is said to be."""
    seats = await place.seat("a", "b", "c")
    assert set(seats.deployment.seats) >= {"a", "b", "c"}
    await place.holds("a", "b", "c")


async def test_seats_of_one_server_are_filled_before_another_is_started(place: Place) -> None:
    first = await place.seat("a")
    for member in "bcd":
        assert (await place.seat(member)).deployment.id == first.deployment.id
    assert (await place.seat("e")).deployment.id != first.deployment.id


async def test_the_same_request_again_holds_one_seat(place: Place) -> None:
    """Repeating a request returns the same seat."""
    first = await place.seat("a")
    again = await place.seat("a")
    assert again.deployment.id == first.deployment.id
    await place.holds("a")


async def test_a_released_seat_is_free_for_the_next_one(place: Place) -> None:
    seats = await place.seat("a", "b", "c", "d")
    await place.release(seats, "b")
    assert (await place.seat("e")).deployment.id == seats.deployment.id
    await place.holds("a", "c", "d", "e")


async def test_releasing_twice_or_what_never_was_changes_nothing(place: Place) -> None:
    seats = await place.seat("a", "b")
    for _ in range(2):
        await place.release(seats, "a")
    await place.allocator.release("stranger", "stranger", deployment_id=seats.deployment.id)
    await place.allocator.release("stranger", "stranger", deployment_id="no-such-1")
    await place.holds("b")


async def test_undone_seats_are_given_back(place: Place) -> None:
    """Seats that did not become sessions; twice is once."""
    seats = await place.seat("a", "b")
    for _ in range(2):
        await place.allocator.undo(seats)
    await place.holds()


async def test_who_stops_waiting_holds_nothing(place: Place) -> None:
    async with aclosing(place.allocator.allocate(_of("a", "b"))) as steps:
        assert isinstance(await anext(steps), Progress)
    await place.holds()


async def test_an_unknown_game_is_refused(place: Place) -> None:
    with pytest.raises(UnknownGame):
        await place.seat("a", version="no such version")


def _of(*members: str) -> AllocationRequest:
    return AllocationRequest(members[0], members, "arena", "1", ("203.0.113.7",))
