"""Seats without a sweep: what an allocator does when something happens, and when a write does not come out as hoped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.allocators.interface import Allocator, Progress, Step
from tipoff_matchmaker.errors import ShuttingDown
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_shared.errors import Unavailable
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState

READY = DeploymentState.READY


def request(*members: str, address: str = "") -> AllocationRequest:
    return AllocationRequest(members[0], members, "arena", "1", client_ips=(address,) if address else ())


class Players:
    """Players who wait for seats of one fleet."""

    def __init__(self, fleet: Fleet, tasks: Tasks) -> None:
        self.fleet = fleet
        self._tasks = tasks
        self.seated: dict[str, Seats] = {}
        self.failed: dict[str, Exception] = {}
        self.texts: list[str] = []
        # Nothing is started for those who wait.
        fleet.parts.planner.want = lambda key: None  # type: ignore[method-assign]

    @property
    def allocator(self) -> Allocator:
        return self.fleet.parts.router.of(ARENA.key)

    def wait(self, *members: str, address: str = "") -> asyncio.Task[None]:
        return self._tasks.start(self._wait(request(*members, address=address)), members[0])

    async def _wait(self, wanted: AllocationRequest) -> None:
        steps: AsyncGenerator[Step, None]
        async with aclosing(self.allocator.allocate(wanted)) as steps:
            try:
                async for step in steps:
                    if isinstance(step, Seats):
                        self.seated[wanted.id] = step
                    else:
                        self.texts.append(step.text)
            except Exception as exc:
                self.failed[wanted.id] = exc

    async def until_seated(self, *ids: str) -> None:
        await self.fleet.world.eventually(lambda: set(self.seated) == set(ids), f"{ids} sit", timeout=2)

    async def waiting(self, count: int) -> None:
        line = self.fleet.parts.lines[ARENA.key]
        await self.fleet.world.eventually(lambda: len(line) == count, f"{count} wait", timeout=2)

    async def server(self, id: str = "one", *, capacity: int = 4, seats: tuple[str, ...] = ()) -> None:
        await self.fleet.server(READY, id=id, capacity=capacity, seats=dict.fromkeys(seats, 9e9))
        self.fleet.parts.trust.add(id)


@pytest.fixture
async def players(world: World) -> object:
    world.announce = False
    async with (
        world.parts(ARENA, seat_hold=30, progress_interval=60, backoff=0.001) as parts,
        Tasks("players") as tasks,
    ):
        yield Players(Fleet(world, parts), tasks)


async def test_seats_are_on_trusted_servers_only_and_trust_is_heard_at_once(players: Players) -> None:
    await players.server()
    players.fleet.parts.trust.remove("one")
    players.wait("a")
    await players.waiting(1)
    assert players.seated == {}
    players.fleet.parts.trust.add("one")
    await players.until_seated("a")


async def test_a_seat_that_becomes_free_is_the_next_ones_at_once(players: Players) -> None:
    await players.server(capacity=1)
    for id in "abc":
        players.wait(id)
    await players.waiting(2)
    await players.until_seated("a")
    await players.allocator.undo(players.seated["a"])
    await players.until_seated("a", "b")
    await players.allocator.release("b", "b", deployment_id="one")
    await players.until_seated("a", "b", "c")
    assert list((await players.fleet.written()).seats) == ["c"]


async def test_seats_on_their_way_are_counted(players: Players, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is sent to a place that another one is about to get: no write is refused."""
    await players.server(capacity=2)
    await players.server("two", capacity=1)
    refused: list[BaseException] = []
    change = players.fleet.parts.deployments.change

    def watched(id: str, apply: object) -> asyncio.Future[DeploymentRecord]:
        future = change(id, apply)  # type: ignore[arg-type]
        future.add_done_callback(lambda done: refused.append(done.exception()) if done.exception() else None)  # type: ignore[arg-type]
        return future

    monkeypatch.setattr(players.fleet.parts.deployments, "change", watched)
    for id in "abcd":
        players.wait(id)
    await players.until_seated("a", "b", "c")
    await players.waiting(1)
    assert refused == []


async def test_seats_count_for_their_time_and_differ_from_each_other(world: World) -> None:
    world.announce = False
    async with (
        world.parts(ARENA, seat_hold=30, clock=lambda: 1000.0) as parts,
        Tasks("players") as tasks,
    ):
        players = Players(Fleet(world, parts), tasks)
        await players.server()
        players.wait("a")
        players.wait("b")
        await players.until_seated("a", "b")
        seats = (await players.fleet.written()).seats
        assert {id: seat.until for id, seat in players.seated.items()} == seats
        assert all(1030.0 <= until < 1030.01 for until in seats.values())
        assert len(set(seats.values())) == 2


async def test_who_finds_a_server_full_keeps_his_place_and_takes_another(players: Players) -> None:
    """Another matchmaker was faster, and this one has not heard of it."""
    await players.server(capacity=1)
    record = msgspec.structs.replace(players.fleet.record(), seats={"other": 9e9})
    await players.fleet.world.buckets.deployments.put("one", record)
    players.wait("a")
    await players.fleet.world.eventually(
        lambda: list(players.fleet.record().seats) == ["other"], "it is heard of", timeout=2
    )
    await players.waiting(1)
    players.wait("b")
    await players.server("two", capacity=1)
    await players.until_seated("a")
    await players.waiting(1)


async def test_who_finds_a_server_gone_takes_another(players: Players) -> None:
    await players.server()
    await players.fleet.world.buckets.deployments.delete("one")
    players.wait("a")
    await players.fleet.world.eventually(
        lambda: players.fleet.parts.deployments.get("one") is None, "it is heard of", timeout=2
    )
    await players.waiting(1)
    await players.server("two")
    await players.until_seated("a")


def failing(players: Players, monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """The next writes of seats fail; returns who tried."""
    change = players.fleet.parts.deployments.change
    tried: list[str] = []

    def away(id: str, apply: object) -> asyncio.Future[DeploymentRecord]:
        if len(tried) >= times:
            return change(id, apply)  # type: ignore[arg-type]
        tried.append(id)
        future: asyncio.Future[DeploymentRecord] = asyncio.get_running_loop().create_future()
        future.set_exception(Unavailable("NATS is away"))
        return future

    monkeypatch.setattr(players.fleet.parts.deployments, "change", away)
    return tried


@pytest.mark.parametrize(("times", "sits"), [(1, True), (8, True), (9, False)])
async def test_a_seat_is_written_again_until_that_is_too_often(
    players: Players, monkeypatch: pytest.MonkeyPatch, times: int, sits: bool
) -> None:
    await players.server()
    tried = failing(players, monkeypatch, times)
    players.wait("a")
    if sits:
        await players.until_seated("a")
    else:
        await players.fleet.world.eventually(lambda: "a" in players.failed, "it is told", timeout=2)
        assert isinstance(players.failed["a"], Unavailable)
    assert len(tried) == times


async def test_an_error_of_another_kind_is_told_at_once(
    players: Players, monkeypatch: pytest.MonkeyPatch
) -> None:
    await players.server()

    def broken(id: str, apply: object) -> asyncio.Future[DeploymentRecord]:
        future: asyncio.Future[DeploymentRecord] = asyncio.get_running_loop().create_future()
        future.set_exception(ValueError("a mistake"))
        return future

    monkeypatch.setattr(players.fleet.parts.deployments, "change", broken)
    players.wait("a")
    await players.fleet.world.eventually(lambda: "a" in players.failed, "it is told", timeout=2)
    assert isinstance(players.failed["a"], ValueError)


async def test_whose_seat_cannot_be_written_while_this_process_ends_is_told_so(
    players: Players, monkeypatch: pytest.MonkeyPatch
) -> None:
    await players.server()
    failing(players, monkeypatch, 1000)
    players.wait("a")
    await asyncio.sleep(0)
    players.allocator.close(ShuttingDown())
    players.wait("b")
    await players.fleet.world.eventually(lambda: len(players.failed) == 2, "both are told", timeout=2)
    assert all(isinstance(error, ShuttingDown) for error in players.failed.values())


async def test_who_goes_while_his_seat_is_written_leaves_it_free(
    players: Players, monkeypatch: pytest.MonkeyPatch
) -> None:
    await players.server(capacity=1)
    begun = asyncio.Event()
    change = players.fleet.parts.deployments.change

    def noted(id: str, apply: object) -> asyncio.Future[DeploymentRecord]:
        begun.set()
        return change(id, apply)  # type: ignore[arg-type]

    monkeypatch.setattr(players.fleet.parts.deployments, "change", noted)
    task = players.wait("a")
    async with asyncio.timeout(5):
        await begun.wait()
    task.cancel()  # before the answer of NATS can be there
    players.wait("b")
    await players.until_seated("b")
    assert list((await players.fleet.written()).seats) == ["b"]


async def test_a_seat_that_another_may_rely_on_is_left_to_its_deadline(players: Players) -> None:
    """The same player asked two matchmakers."""
    await players.server(seats=("a",))
    players.wait("a")
    await players.until_seated("a")
    assert players.seated["a"].shared
    await players.allocator.undo(players.seated["a"])
    assert list((await players.fleet.written()).seats) == ["a"]
    players.wait("b")
    await players.until_seated("a", "b")
    assert not players.seated["b"].shared


async def test_an_undo_that_fails_or_comes_too_late_is_no_error(
    players: Players, monkeypatch: pytest.MonkeyPatch
) -> None:
    await players.server()
    players.wait("a")
    await players.until_seated("a")
    tried = failing(players, monkeypatch, 1)
    await players.allocator.undo(players.seated["a"])
    assert tried == ["one"]
    await players.fleet.world.buckets.deployments.delete("one")
    await players.allocator.undo(players.seated["a"])
    await players.allocator.release("a", "a", deployment_id="one")


async def test_a_session_without_a_server_has_no_seat_to_release(
    players: Players, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = failing(players, monkeypatch, 1)
    await players.allocator.release("a", "a", deployment_id="")
    assert tried == []


async def test_groups_go_where_they_fit_and_nobody_overtakes_them(players: Players) -> None:
    await players.server(capacity=4, seats=("x", "y"))
    players.wait("a", "b", "c")
    players.wait("d")
    await players.waiting(2)
    assert players.seated == {}
    await players.server("two")
    await players.until_seated("a", "d")
    assert players.seated["a"].deployment.id == "two"
    assert players.seated["a"].members == ("a", "b", "c")
    assert await players.allocator.sessions() == {"x", "y", "a", "b", "c", "d"}


async def test_who_waits_is_told_what_for_and_asks_for_servers(players: Players) -> None:
    wanted: list[object] = []
    players.fleet.parts.planner.want = wanted.append  # type: ignore[method-assign]
    async with aclosing(players.allocator.allocate(request("a"))) as steps:
        first = await anext(steps)
        assert isinstance(first, Progress)
        assert wanted == [], "its record can be written first"
        second = asyncio.ensure_future(anext(steps))
        await players.fleet.world.eventually(lambda: wanted == [ARENA.key], "a server is wanted", timeout=2)
        await players.server()
        assert isinstance(await second, Seats)
    assert len(players.fleet.parts.lines[ARENA.key]) == 0


async def test_servers_of_games_that_are_not_ours_have_no_line(players: Players) -> None:
    await players.fleet.server(id="other", game="other")
    players.fleet.parts.trust.add("other")
    players.fleet.parts.trust.add("unknown")
    players.wait("a")
    await players.waiting(1)


async def test_an_address_waits_for_its_own_players_first(world: World) -> None:
    """Two seats that nobody has claimed are its share; others go on. Each that is given back is its next one's."""
    world.announce = False
    async with (
        world.parts(ARENA, seat_hold=30, progress_interval=60, unclaimed_per_address=2) as parts,
        Tasks("players") as tasks,
    ):
        players = Players(Fleet(world, parts), tasks)
        await players.server(capacity=4)
        for id in "abc":
            players.wait(id, address="203.0.113.7")
        players.wait("d", address="203.0.113.8")
        await players.until_seated("a", "b", "d")
        assert any("Other players at your address" in text for text in players.texts)
        await players.allocator.undo(players.seated["a"])
        await players.until_seated("a", "b", "c", "d")
