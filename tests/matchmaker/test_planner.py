"""What a planner makes of waiting players, failed starts, crashes and reservations of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World
from tests.polling import eventually
from tipoff_matchmaker.fleet import planner as planner_module
from tipoff_matchmaker.fleet.start_backoff import SHORT_LIFE
from tipoff_matchmaker.seats.allocation_request import AllocationRequest
from tipoff_matchmaker.seats.waiting_line import Waiter
from tipoff_orchestrator_client.base import (
    DeploySpec,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
)
from tipoff_shared.errors import OrchestratorFailed
from tipoff_shared.games import Game
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState, FleetRecord

KEY = ARENA.key
STARTING, READY, GONE = DeploymentState.STARTING, DeploymentState.READY, DeploymentState.GONE
WARM = msgspec.structs.replace(ARENA, min_ready=1)
ONE = msgspec.structs.replace(ARENA, max_deployments=1)
BUSY = OrchestratorUnavailable("503 try later", retryable=True)


@asynccontextmanager
async def planning(world: World, *games: Game, **changes: object) -> AsyncIterator[Fleet]:
    """The planner's loops run, and nothing else does."""
    world.announce = False
    async with world.parts(*games, **changes) as parts:  # type: ignore[arg-type] # settings
        failures: list[BaseException] = []
        async with Tasks("planner", failures.append) as loops:
            parts.planner.run(loops)
            yield Fleet(world, parts)
        assert failures == []


def waits(fleet: Fleet, *members: str) -> Waiter:
    """Players who wait, from now on."""
    request = AllocationRequest(members[0], members, "arena", "1")
    waiter = fleet.parts.lines[KEY].enter(request, 1.0)
    fleet.parts.planner.want(KEY)
    return waiter


async def asked(fleet: Fleet, times: int) -> None:
    """The orchestrator has been asked to start so many servers."""
    await eventually(lambda: fleet.asked("deploy") >= times, f"{times} starts", timeout=20)


async def becomes_ready(fleet: Fleet, id: str) -> None:
    await fleet.server(STARTING, id=id)
    await fleet.parts.deployments.change(id, lambda record: msgspec.structs.replace(record, state=READY))


async def crashes(fleet: Fleet, id: str) -> None:
    """It becomes ready, and ends by itself."""
    await becomes_ready(fleet, id)
    await vanishes(fleet, id)


async def vanishes(fleet: Fleet, id: str) -> None:
    await eventually(lambda: id in fleet.world.servers, "it runs", timeout=20)
    await fleet.world.fake.vanish(id)
    fleet.parts.liveness.confirm(id, "it is silent")
    await fleet.settled()


def crashing(fleet: Fleet) -> str:
    return fleet.parts.planner.crashing(KEY)


class Time:
    """The planner's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(planner_module, "time", SimpleNamespace(monotonic=lambda: self.now))


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


# How many.


@pytest.mark.parametrize(("players", "servers"), [(1, 1), (4, 1), (5, 2), (9, 3)])
async def test_as_many_servers_are_started_as_the_waiting_players_need(
    world: World, players: int, servers: int
) -> None:
    async with planning(world) as fleet:
        for number in range(players):
            fleet.parts.lines[KEY].enter(
                AllocationRequest(f"p{number}", (f"p{number}",), "arena", "1", ()), 1.0
            )
        fleet.parts.planner.want(KEY)
        await asked(fleet, servers)
        fleet.parts.planner.want_all()
        await asyncio.sleep(0.05)  # it has time to start too many
        assert fleet.asked("deploy") == servers


async def test_one_address_makes_no_more_servers_start_than_it_may_fill(world: World) -> None:
    async with planning(world, unclaimed_per_address=2) as fleet:
        for number in range(9):
            name = f"p{number}"
            fleet.parts.lines[KEY].enter(AllocationRequest(name, (name,), "arena", "1", ("9.9.9.9",)), 1.0)
        fleet.parts.planner.want(KEY)
        await asked(fleet, 1)
        fleet.parts.planner.want(KEY)
        await asyncio.sleep(0.05)  # it has time to start too many
        assert fleet.asked("deploy") == 1


async def test_a_reservation_without_a_record_is_a_server_on_its_way(world: World) -> None:
    """Another matchmaker's, or that of one which died in between. When it is over, there is room."""
    await world.buckets.fleets.put("arena.1", FleetRecord("arena", "1", {"other": 1.0}))
    async with planning(world, ONE) as fleet:
        waits(fleet, "a")
        await asyncio.sleep(0.05)  # it has time to start one too many
        assert fleet.asked("deploy") == 0
        await world.buckets.fleets.put("arena.1", FleetRecord("arena", "1"))
        await world.buckets.deployments.put(
            "other", DeploymentRecord("other", GONE, "arena", "1", "fake", 4, 1.0)
        )
        await fleet.parts.deployments.fetch("other")
        await asked(fleet, 1)


@pytest.mark.parametrize("own", [True, False])
async def test_the_end_of_a_server_makes_room_for_another(world: World, own: bool) -> None:
    async with planning(world, ONE) as fleet:
        await fleet.server(READY, seats={str(number): 9e9 for number in range(4)})
        await world.buckets.fleets.put("arena.1", FleetRecord("arena", "1", {"one": 1.0}))
        waits(fleet, "a")
        await asyncio.sleep(0.05)  # it has time to start one too many
        assert fleet.asked("deploy") == 1, "by the test"
        if own:
            fleet.parts.stopper.stop("one", "it is over")
        else:
            await world.buckets.fleets.put("arena.1", FleetRecord("arena", "1"))
            gone = msgspec.structs.replace(fleet.record(), state=GONE, seats={})
            await world.buckets.deployments.put("one", gone)
            await fleet.parts.deployments.fetch("one")
        await asked(fleet, 2)


# Starts that fail.


async def test_an_orchestrator_that_is_back_is_asked_at_once(world: World) -> None:
    async with planning(world, WARM, backoff=1000) as fleet:
        world.fake.fail("deploy", NoCapacity("full", retryable=True, retry_after=1000))
        fleet.parts.planner.want(KEY)
        await asked(fleet, 1)
        await fleet.settled()
        world.fake.restarted()
        await asked(fleet, 2)


@pytest.mark.parametrize("retry_after", [20.0, 60.0])
async def test_an_orchestrator_without_room_says_when_it_is_asked_again(
    world: World, time: Time, retry_after: float
) -> None:
    """Without a word it is asked within three seconds. It may ask for a minute at most."""
    async with planning(world, WARM) as fleet:
        world.fake.fail("deploy", NoCapacity("full", retryable=True, retry_after=retry_after))
        fleet.parts.planner.want(KEY)
        await asked(fleet, 1)
        await fleet.settled()
        time.now += retry_after - 1
        fleet.parts.planner.want(KEY)
        await asyncio.sleep(0.05)  # it has time to ask too early
        assert fleet.asked("deploy") == 1
        time.now += retry_after
        fleet.parts.planner.want(KEY)
        await asked(fleet, 2)


async def test_a_start_that_failed_is_stopped_and_leaves_no_reservation(world: World) -> None:
    """It may run all the same."""
    async with planning(world, backoff=1000) as fleet:
        world.fake.fail("deploy", NoCapacity("full"))
        waiter = waits(fleet, "a")
        await asked(fleet, 1)
        await fleet.settled()
        assert fleet.asked("stop") == 1
        assert waiter.start_failed == "full"
        assert (await world.buckets.fleets.list())["arena.1"].value.deployments == {}


@pytest.mark.parametrize("tells", [True, False])
async def test_who_waits_hears_that_no_server_can_be_started(world: World, tells: bool) -> None:
    """At once where trying again is of no use, with the reason where those who play may know it."""
    async with planning(world, tell_reasons=tells) as fleet:
        world.fake.fail("deploy", NotConfigured("no such image"))
        waiter = waits(fleet, "a")
        await eventually(lambda: waiter.error, "an answer", timeout=20)
        assert isinstance(waiter.error, OrchestratorFailed)
        assert str(waiter.error) == "no server could be started" + (": no such image" if tells else "")
        assert waiter.error.retry_after == 5


async def test_who_waits_hears_nothing_of_what_the_server_wrote(world: World) -> None:
    """Its last words are a traceback, perhaps, or a secret."""
    async with planning(world, tell_reasons=True) as fleet:
        world.fake.fail(
            "deploy", NotConfigured("exited with code 1; its last words: File server.py | hunter2")
        )
        waiter = waits(fleet, "a")
        await eventually(lambda: waiter.error, "an answer", timeout=20)
        assert str(waiter.error) == "no server could be started: exited with code 1"


async def test_who_waits_beside_a_ready_server_goes_on_waiting(world: World) -> None:
    """A seat there may become free."""
    async with planning(world) as fleet:
        await fleet.server(READY, seats={str(number): 9e9 for number in range(4)})
        world.fake.fail("deploy", NotConfigured("no such image"))
        waiter = waits(fleet, "a")
        await eventually(lambda: waiter.start_failed, "it is announced", timeout=20)
        assert waiter.error is None


async def test_a_game_without_its_orchestrator_is_an_answer(world: World) -> None:
    async with planning(world, msgspec.structs.replace(ARENA, orchestrator="nowhere")) as fleet:
        waiter = waits(fleet, "a")
        assert fleet.parts.planner.explain(KEY, waited=0, position=1, start_failed="") == "Starting a server"
        await eventually(lambda: waiter.error, "an answer", timeout=20)
        assert isinstance(waiter.error, OrchestratorFailed)


async def test_while_its_orchestrator_is_left_alone_no_start_is_begun(world: World) -> None:
    """Who comes then is told at once, and when to come again."""
    changes = {"breaker_failures": 1, "breaker_pause": 30, "start_failures": 1, "tell_reasons": True}
    async with planning(world, **changes) as fleet:
        world.fake.fail("deploy", OrchestratorError("no such image"))
        first = waits(fleet, "a")
        await eventually(lambda: first.error, "an answer", timeout=20)
        await fleet.settled()
        world.fake.fail("deploy", BUSY)
        with pytest.raises(OrchestratorUnavailable):
            await fleet.parts.orchestrators["fake"].deploy(DeploySpec("any", "arena", "1", 4))
        records, calls = await world.buckets.deployments.list(), fleet.asked("deploy")
        second = waits(fleet, "b")
        await eventually(lambda: second.error, "an answer", timeout=20)
        assert isinstance(second.error, OrchestratorFailed)
        assert str(second.error) == "no server could be started: fake cannot start servers now"
        assert second.error.retry_after is not None
        assert 5 < second.error.retry_after <= 30
        await fleet.settled()
        assert (await world.buckets.deployments.list()).keys() == records.keys()
        assert fleet.asked("deploy") == calls
        why = fleet.parts.planner.explain(KEY, waited=0, position=1, start_failed="")
        assert why.startswith("No server can be started just now, trying again in ")


async def test_an_orchestrator_is_asked_again_when_its_pause_is_over(world: World) -> None:
    """Nobody has to ask for it."""
    async with planning(world, WARM, breaker_failures=1, breaker_pause=0.2, backoff=0.01) as fleet:
        world.fake.fail("deploy", BUSY)
        fleet.parts.planner.want(KEY)
        await eventually(lambda: len(world.fake.living) == 1, "a server runs", timeout=20)


# Servers that end soon.


async def test_servers_that_end_soon_after_their_start_are_called_crashing(fleet: Fleet, time: Time) -> None:
    """Until one has been ready for a while."""
    for number in range(2):
        await crashes(fleet, f"s{number}")
    assert crashing(fleet) == ""
    await crashes(fleet, "s2")
    assert crashing(fleet) == "its servers end soon after their start: the server is gone"
    await becomes_ready(fleet, "s3")
    time.now += SHORT_LIFE - 0.1
    assert crashing(fleet) == "its servers end soon after their start: the server is gone"
    time.now += 0.1
    assert crashing(fleet) == ""


async def test_a_server_that_has_lived_for_a_while_ends_the_count(fleet: Fleet, time: Time) -> None:
    for number in range(2):
        await crashes(fleet, f"s{number}")
    await becomes_ready(fleet, "long")
    time.now += SHORT_LIFE
    await vanishes(fleet, "long")
    for number in range(2, 4):
        await crashes(fleet, f"s{number}")
    assert crashing(fleet) == ""
