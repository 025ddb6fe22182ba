"""What an orchestrator makes of each of Edgegap's answers: once ordered, found, adopted, stopped, and heard of.

Edgegap is in memory, and so is time; the orders are in NATS.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.edgegap.account import GAME, WALL, AccountWorld, spec
from tests.polling import eventually
from tipoff_orchestrator_client.base import (
    NotConfigured,
    OrchestratorUnavailable,
    Port,
    RunState,
)
from tipoff_orchestrator_client.edgegap.api.answers import NamedPort, Server
from tipoff_orchestrator_client.edgegap.api.errors import NoRoom, Unreachable, Unreadable
from tipoff_orchestrator_client.edgegap.naming import tags_of
from tipoff_orchestrator_client.edgegap.orchestrator import EdgegapOrchestrator
from tipoff_orchestrator_client.edgegap.orders.order_diff import COMING
from tipoff_orchestrator_client.edgegap.orders.stop_requests import STOPPING
from tipoff_orchestrator_client.edgegap.orders.store import Known, OrderStore
from tipoff_shared.hooks import HookKey
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import EdgegapOrder, OrderState


@pytest.fixture
async def world(nats: Bus) -> AsyncIterator[AccountWorld]:
    async with AccountWorld.running(nats) as world:
        yield world


def ordered(state: OrderState = OrderState.ORDERED, request_id: str = "r1", **more: object) -> EdgegapOrder:
    order = EdgegapOrder("arena-1", state, "arena", "1", request_id, tried_at=WALL, tries=1)
    return msgspec.structs.replace(order, **more)


# deploy


async def test_an_order_is_written_before_it_is_placed_and_its_outcome_afterwards(
    world: AccountWorld,
) -> None:
    world.account.gate = asyncio.Event()
    deploying = asyncio.ensure_future(world.orchestrator().deploy(spec(near=("203.0.113.9",))))
    await eventually(lambda: world.account.called("create"), "it is placed")
    assert await world.order() == ordered(OrderState.ORDERING, "")
    world.account.gate.set()
    deployment = await deploying
    assert (deployment.state, deployment.native_id) == (RunState.STARTING, "r1")
    assert await world.order() == ordered()
    (created,) = world.account.called("create")
    assert (created["application"], created["version"]) == ("arena-app", "v1")
    assert created["tags"] == tags_of(world.bus.settings.namespace, "arena-1", GAME.key)
    assert created["near"] == ["8.8.8.8"]  # that address is not public
    assert created["webhook_url"] == ""
    assert ("TIPOFF_DEPLOYMENT_ID", "arena-1", False) in created["environment"]


@pytest.mark.parametrize(("near", "used"), [(3, 3), (10, 10), (11, 10)])
async def test_a_server_is_placed_near_so_many_players(world: AccountWorld, near: int, used: int) -> None:
    players = tuple(f"9.9.9.{number}" for number in range(near))
    await world.orchestrator().deploy(spec(near=players))
    assert world.account.called("create")[0]["near"] == list(players[:used])


async def test_a_repeated_deploy_orders_nothing(world: AccountWorld) -> None:
    """By the same matchmaker or by another one, at once or later."""
    one, other = world.orchestrator(), world.orchestrator()
    first = await one.deploy(spec())
    for later in (0.0, 0.4, 0.6, 3600.0):
        world.clock.seconds = later
        for orchestrator in (one, other):
            assert await orchestrator.deploy(spec()) == first
    assert len(world.account.called("create")) == 1


async def test_whether_a_server_has_a_key_of_its_own_is_said(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    assert (await orchestrator.deploy(spec("arena-1", own_key=True))).own_key is True
    assert (await orchestrator.deploy(spec("arena-2"))).own_key is False


@pytest.mark.parametrize("skew", [0.0, 5.0, -5.0])
@pytest.mark.parametrize("call", ["deploy", "get"])
async def test_a_fresh_order_that_edgegap_does_not_know_yet_is_starting(
    world: AccountWorld, call: str, skew: float
) -> None:
    """For ten seconds, also where the clock of the matchmaker that ordered it differs."""
    await world.orchestrator(skew=skew).deploy(spec())
    world.account.unknown.add("r1")
    other = world.orchestrator()

    async def asked() -> RunState | None:
        found = await (other.deploy(spec()) if call == "deploy" else other.get("arena-1"))
        return None if found is None else found.state

    world.clock.seconds = 0.6
    assert await asked() is RunState.STARTING
    world.clock.seconds = skew + 9.9
    assert await asked() is RunState.STARTING
    world.clock.seconds = skew + 10.1
    assert await asked() is (RunState.STOPPED if call == "deploy" else None)
    assert len(world.account.called("create")) == 1


@pytest.mark.parametrize("call", ["deploy", "get", "list"])
async def test_an_order_that_edgegap_knew_and_knows_no_more_has_ended_at_once(
    world: AccountWorld, call: str
) -> None:
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec())
    world.clock.seconds = 1.0
    await {
        "deploy": lambda: orchestrator.deploy(spec()),
        "get": lambda: orchestrator.get("arena-1"),
        "list": orchestrator.list,
    }[call]()
    world.account.forgets("r1")
    world.clock.seconds = 2.0
    assert await orchestrator.get("arena-1") is None
    order = await world.order()
    assert order is not None
    assert (order.state, order.reason) == (OrderState.STOPPED, "Edgegap no longer knows it")


@pytest.mark.parametrize(
    "how", ["ended", "failed", "unknown", "stopped by us", "ended there, noticed by get"]
)
async def test_what_has_ended_is_not_ordered_again(world: AccountWorld, how: str) -> None:
    """However often it is asked for, by whomever."""
    one, other = world.orchestrator(), world.orchestrator()
    await one.deploy(spec())
    world.clock.seconds = 60.0
    if how == "unknown":
        world.account.forgets("r1")
    elif how == "stopped by us":
        await one.stop("arena-1")
    else:
        world.account.becomes("r1", ended=True, failed=how == "failed", reason="it crashed")
        if how == "ended there, noticed by get":
            assert (await one.get("arena-1")).state is RunState.STOPPED  # type: ignore[union-attr]
    for orchestrator in (one, other):
        assert (await orchestrator.deploy(spec())).state is RunState.STOPPED
    assert len(world.account.called("create")) == 1


async def test_a_stopped_id_that_was_never_ordered_is_not_ordered_either(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    await orchestrator.stop("arena-1")
    stopped = await orchestrator.deploy(spec())
    assert (stopped.state, stopped.reason) == (RunState.STOPPED, "stopped")
    assert world.account.called("create") == []


async def test_an_order_of_unknown_outcome_is_looked_for_before_it_is_repeated(world: AccountWorld) -> None:
    await world.write(ordered(OrderState.ORDERING, ""))
    world.account.add(running=False)
    deployment = await world.orchestrator().deploy(spec())
    assert deployment.native_id == "r1"
    assert world.account.called("create") == []
    assert await world.order() == ordered()


async def test_an_order_that_came_to_nothing_is_placed_again(world: AccountWorld) -> None:
    """Its tries are counted: whoever stops it looks for more than one."""
    await world.write(ordered(OrderState.ORDERING, ""))
    world.account.add(running=False, ended=True)
    world.clock.seconds = 7.0
    assert (await world.orchestrator().deploy(spec())).native_id == "r2"
    assert await world.order() == ordered(request_id="r2", tries=2, tried_at=WALL + 7.0)


@pytest.mark.parametrize("may_have_started", [True, False])
@pytest.mark.parametrize("created", [True, False])
async def test_a_create_without_an_answer_is_looked_for_where_it_may_have_been_carried_out(
    world: AccountWorld, created: bool, may_have_started: bool
) -> None:
    world.account.errors["create"] = [Unreachable("no answer", sent=may_have_started)]
    world.account.after_error = created
    orchestrator = world.orchestrator()
    if created and may_have_started:
        assert (await orchestrator.deploy(spec())).native_id == "r1"
        assert await world.order() == ordered()
    else:
        with pytest.raises(Unreachable):
            await orchestrator.deploy(spec())
        assert await world.order() == ordered(OrderState.ORDERING, "")
    assert len(world.account.called("list")) == may_have_started


async def test_when_the_list_cannot_be_read_either_the_error_is_the_creates(world: AccountWorld) -> None:
    world.account.errors = {"create": [Unreachable("no answer", sent=True)], "list": [Unreadable("no JSON")]}
    with pytest.raises(Unreachable, match="no answer"):
        await world.orchestrator().deploy(spec())


@pytest.mark.parametrize("request_id", ["r9", ""])
async def test_what_no_location_took_is_cleared_away(world: AccountWorld, request_id: str) -> None:
    """Edgegap created it in error; the player waits, and is told so."""
    world.account.errors["create"] = [NoRoom("full", request_id=request_id)]
    orchestrator = world.orchestrator()
    with pytest.raises(NoRoom):
        await orchestrator.deploy(spec())
    told = [request_id] if request_id else []
    await world.stopped(*told)
    assert (await orchestrator.deploy(spec())).native_id == "r1"
    assert world.account.called("stop") == told


async def test_one_that_was_stopped_while_it_was_created_is_stopped_at_once(world: AccountWorld) -> None:
    world.account.gate = asyncio.Event()
    orchestrator = world.orchestrator()
    deploying = asyncio.ensure_future(orchestrator.deploy(spec()))
    await eventually(lambda: world.account.called("create"), "it is being created")
    await world.orchestrator().stop("arena-1")
    assert world.account.called("stop") == []
    world.account.gate.set()
    assert (await deploying).state is RunState.STOPPED
    assert world.account.called("stop") == ["r1"]


async def test_of_two_matchmakers_that_order_at_once_one_gets_its_server(world: AccountWorld) -> None:
    """Both use it; the other one is stopped."""
    world.account.gate = asyncio.Event()
    deploying = []
    for number in (1, 2):
        deploying.append(asyncio.ensure_future(world.orchestrator().deploy(spec())))
        await eventually(
            lambda count=number: len(world.account.called("create")) == count, "it is being created"
        )
    world.account.gate.set()
    one, other = await asyncio.gather(*deploying)
    order = await world.order()
    assert order is not None
    assert order.tries == 2
    assert one.native_id == other.native_id == order.request_id
    await world.stopped(*{"r1", "r2"} - {order.request_id})


async def test_two_deploys_of_one_id_in_one_process_order_once(world: AccountWorld) -> None:
    world.account.gate = asyncio.Event()
    orchestrator = world.orchestrator()
    both = [asyncio.ensure_future(orchestrator.deploy(spec())) for _ in range(2)]
    await eventually(lambda: world.account.called("create"), "it is being created")
    world.account.gate.set()
    one, other = await asyncio.gather(*both)
    assert one == other
    assert len(world.account.called("create")) == 1


async def test_two_deployments_are_ordered_at_the_same_time(world: AccountWorld) -> None:
    world.account.gate = asyncio.Event()
    orchestrator = world.orchestrator()
    both = [asyncio.ensure_future(orchestrator.deploy(spec(f"arena-{number}"))) for number in (1, 2)]
    await eventually(lambda: len(world.account.called("create")) == 2, "both are being created")
    world.account.gate.set()
    assert {one.deployment_id for one in await asyncio.gather(*both)} == {"arena-1", "arena-2"}


@pytest.mark.parametrize(("races", "succeeds"), [(1, True), (7, True), (8, False)])
async def test_who_loses_every_race_for_an_order_gives_up(
    world: AccountWorld, monkeypatch: pytest.MonkeyPatch, races: int, succeeds: bool
) -> None:
    """Another matchmaker writes it again and again; what came of that is unknown."""
    get, lost = OrderStore.get, 0

    async def overtaken(self: OrderStore, deployment_id: str) -> Known:
        nonlocal lost
        found = await get(self, deployment_id)
        if lost < races:
            lost += 1
            await world.write(ordered(OrderState.ORDERING, "", tries=lost))
        return found

    monkeypatch.setattr(OrderStore, "get", overtaken)
    orchestrator = world.orchestrator()
    if succeeds:
        assert (await orchestrator.deploy(spec())).native_id == "r1"
        return
    with pytest.raises(OrchestratorUnavailable, match="other matchmakers order arena-1") as raised:
        await orchestrator.deploy(spec())
    assert raised.value.retryable
    assert raised.value.may_have_started
    assert world.account.called("create") == []


async def test_a_deploy_that_is_repeated_at_once_asks_edgegap_nothing(world: AccountWorld) -> None:
    """For half a second, and not of another deployment."""
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec("arena-1"))
    calls = len(world.account.calls)
    world.clock.seconds = 0.5
    assert (await orchestrator.deploy(spec("arena-1"))).native_id == "r1"
    assert len(world.account.calls) == calls
    await orchestrator.deploy(spec("arena-2"))
    world.clock.seconds = 0.6
    assert (await orchestrator.deploy(spec("arena-1"))).native_id == "r1"
    assert world.account.called("status") == ["r1"]


@pytest.mark.parametrize("how", ["deploy", "get", "get without an order", "list"])
async def test_ports_have_the_names_of_the_games_transports(world: AccountWorld, how: str) -> None:
    """However a running server is asked about."""
    orchestrator = world.orchestrator()
    if how == "get without an order":
        world.account.add()
    else:
        await orchestrator.deploy(spec())
    world.account.becomes(
        "r1", running=True, ip="9.9.9.9", ports={"game": NamedPort("game", 7777, 31000, "udp")}
    )
    world.clock.seconds = 1.0
    if how == "list":
        (found,) = await orchestrator.list()
    else:
        asked = await (orchestrator.deploy(spec()) if how == "deploy" else orchestrator.get("arena-1"))
        assert asked is not None
        found = asked
    assert (found.deployment_id, found.host, found.state) == ("arena-1", "9.9.9.9", RunState.RUNNING)
    assert found.ports == {"udp": Port(7777, 31000, "udp")}


async def test_one_whose_order_and_game_are_unknown_can_still_be_stopped(world: AccountWorld) -> None:
    """games.toml no longer has it."""
    world.account.add()
    orchestrator = world.orchestrator(msgspec.structs.replace(GAME, name="other"))
    found = await orchestrator.get("arena-1")
    assert found is not None
    assert (found.deployment_id, found.game, found.version) == ("arena-1", "", "")
    assert [one.game for one in await orchestrator.list()] == [""]
    await orchestrator.stop("arena-1")
    assert world.account.called("stop") == ["r1"]


async def test_an_order_that_was_deleted_meanwhile_is_an_error_and_may_be_running(
    world: AccountWorld,
) -> None:
    world.account.gate = asyncio.Event()
    deploying = asyncio.ensure_future(world.orchestrator().deploy(spec()))
    await eventually(lambda: world.account.called("create"), "it is being created")
    await world.buckets.edgegap_orders.purge("arena-1")
    world.account.gate.set()
    with pytest.raises(OrchestratorUnavailable, match="was deleted") as raised:
        await deploying
    assert raised.value.may_have_started
    assert raised.value.retryable


@pytest.mark.parametrize("what", ["game", "version", "edgegap", "environment"])
async def test_what_games_toml_does_not_say_cannot_be_ordered(world: AccountWorld, what: str) -> None:
    games = {
        "game": msgspec.structs.replace(GAME, name="other"),
        "version": msgspec.structs.replace(GAME, version="2"),
        "edgegap": msgspec.structs.replace(GAME, edgegap=None),
        "environment": msgspec.structs.replace(
            GAME,
            edgegap=msgspec.structs.replace(GAME.edgegap, env={"MOTD": "x" * 256}),  # type: ignore[type-var]
        ),
    }
    with pytest.raises(NotConfigured, match="MOTD" if what == "environment" else r"'arena' version '1'"):
        await world.orchestrator(games[what]).deploy(spec())
    assert await world.order() is None


async def test_orders_that_cannot_be_read_are_an_orchestrators_error(world: AccountWorld) -> None:
    await world.bus.js.delete_stream(world.buckets.edgegap_orders.stream)
    orchestrator = world.orchestrator()
    for call in (orchestrator.deploy(spec()), orchestrator.stop("arena-1"), orchestrator.list()):
        with pytest.raises(OrchestratorUnavailable) as raised:
            await call
        assert raised.value.may_have_started
        assert raised.value.retryable


# get


@pytest.mark.parametrize("known_here", [True, False])
async def test_the_state_at_edgegap_is_what_get_tells(world: AccountWorld, known_here: bool) -> None:
    """Whichever matchmaker ordered it."""
    one, other = world.orchestrator(), world.orchestrator()
    await one.deploy(spec())
    orchestrator = one if known_here else other
    for state, changes in (
        (RunState.STARTING, {}),
        (RunState.RUNNING, {"running": True, "ip": "9.9.9.9"}),
        (RunState.STOPPED, {"running": False, "ended": True, "reason": "it ended"}),
    ):
        world.account.becomes("r1", **changes)
        world.clock.seconds += 1.0
        found = await orchestrator.get("arena-1")
        assert found is not None
        assert (found.state, found.game, found.version) == (state, "arena", "1")
    assert (found.host, found.reason) == ("9.9.9.9", "it ended")
    assert await world.order() == ordered(OrderState.STOPPED, reason="it ended")
    assert world.account.called("stop") == []


async def test_a_running_one_may_be_half_a_second_old_and_a_starting_one_may_not(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec())
    await orchestrator.get("arena-1")
    world.account.becomes("r1", running=True)
    await orchestrator.get("arena-1")
    asked = len(world.account.called("status"))
    assert asked == 2
    world.clock.seconds = 0.5
    await orchestrator.get("arena-1")
    assert len(world.account.called("status")) == asked
    world.clock.seconds = 0.51
    await orchestrator.get("arena-1")
    assert len(world.account.called("status")) == asked + 1


async def test_what_failed_is_stopped_for_it_would_lie_about(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec())
    world.account.becomes("r1", ended=True, failed=True, reason="no image")
    world.clock.seconds = 1.0
    found = await orchestrator.get("arena-1")
    assert found is not None
    assert (found.state, found.reason) == (RunState.STOPPED, "no image")
    await world.stopped("r1")


async def test_one_without_an_order_is_known_by_its_tag(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    assert await orchestrator.get("arena-1") is None
    world.account.add(ended=True, running=False)
    assert await orchestrator.get("arena-1") is None
    world.account.add()
    found = await orchestrator.get("arena-1")
    assert found is not None
    assert (found.native_id, found.game) == ("r2", "arena")
    assert await world.order() is None


@pytest.mark.parametrize(("age", "state"), [(COMING - 1, RunState.STARTING), (COMING + 1, None)])
async def test_an_order_of_unknown_outcome_may_still_come_to_something(
    world: AccountWorld, age: float, state: RunState | None
) -> None:
    await world.write(ordered(OrderState.ORDERING, ""))
    world.clock.seconds = age
    orchestrator = world.orchestrator()
    found = await orchestrator.get("arena-1")
    assert (None if found is None else found.state) is state
    world.account.add()
    found = await orchestrator.get("arena-1")
    assert found is not None
    assert found.state is RunState.RUNNING
    assert await world.order() == ordered()


async def test_one_that_was_stopped_is_stopped_whatever_runs(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec())
    world.account.becomes("r1", running=True)
    await orchestrator.stop("arena-1")
    found = await orchestrator.get("arena-1")
    assert found is not None
    assert found.state is RunState.STOPPED


async def test_a_servers_own_name_leads_to_its_deployment(world: AccountWorld) -> None:
    """Also to one that another matchmaker has ordered."""
    one, other = world.orchestrator(), world.orchestrator()
    await one.deploy(spec("arena-1"))
    await one.deploy(spec("arena-2"))
    listed = len(world.account.calls)
    for orchestrator in (one, other):
        assert await orchestrator.deployment_named("r2") == "arena-2"
        assert await orchestrator.deployment_named("r1") == "arena-1"
        assert await orchestrator.deployment_named("r3") is None
    assert len(world.account.calls) == listed


# list


async def test_the_list_shows_what_is_ours_and_has_not_ended(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec("arena-1"))
    await orchestrator.deploy(spec("arena-2"))
    world.account.becomes("r2", ended=True)
    world.account.add("arena-3")
    assert sorted(one.deployment_id for one in await orchestrator.list()) == ["arena-1", "arena-3"]


async def test_the_list_writes_outcomes_that_were_lost_and_stops_what_should_not_run(
    world: AccountWorld,
) -> None:
    orchestrator = world.orchestrator()
    await world.write(ordered(OrderState.ORDERING, ""))
    world.account.add("arena-1")
    await orchestrator.deploy(spec("arena-2"))
    await orchestrator.stop("arena-2")
    double = world.account.add("arena-2")
    await orchestrator.list()
    await world.stopped("r2", double)

    async def adopted() -> bool:
        return await world.order() == ordered()

    await eventually(adopted, "its outcome is written", 2)


async def test_one_that_is_missing_from_the_list_is_asked_for_by_its_status(world: AccountWorld) -> None:
    """An empty list proves nothing; one that is young may still appear in it."""
    orchestrator = world.orchestrator()
    events = orchestrator.events()
    heard = asyncio.ensure_future(anext(events))
    await orchestrator.deploy(spec())
    world.account.becomes("r1", running=True)
    assert (await heard).state is RunState.RUNNING
    world.clock.seconds = COMING + 2
    heard = asyncio.ensure_future(anext(events))
    world.account.unlisted.add("r1")
    asked = len(world.account.called("status"))
    assert await orchestrator.list() == []
    await eventually(lambda: len(world.account.called("status")) == asked + 1, "it is asked for", 2)
    world.clock.seconds += 0.9
    await orchestrator.list()  # it was asked for less than a second ago
    await world.write(ordered(OrderState.ORDERED, "r8", deployment_id="arena-8", tried_at=0.0))
    await orchestrator.list()
    await eventually(lambda: "r8" in world.account.called("status"), "the next one is asked for", 2)
    assert world.account.called("status").count("r1") == asked + 1
    world.account.forgets("r1")
    world.clock.seconds += 2
    await orchestrator.list()
    assert (await heard).state is RunState.STOPPED


# stop


@pytest.mark.parametrize("tries", [1, 2])
async def test_stop_stops_every_server_of_an_order_that_was_placed_more_than_once(
    world: AccountWorld, tries: int
) -> None:
    world.account.add()
    world.account.add()
    world.account.add("arena-2")
    await world.write(ordered(tries=tries))
    await world.orchestrator().stop("arena-1")
    assert sorted(world.account.called("stop")) == (["r1"] if tries == 1 else ["r1", "r2"])
    order = await world.order()
    assert order is not None
    assert order.state is OrderState.STOPPED


@pytest.mark.parametrize("lost", [True, False])
async def test_stop_finds_a_server_of_which_no_outcome_was_written(world: AccountWorld, lost: bool) -> None:
    if not lost:
        await world.write(ordered(OrderState.ORDERING, ""))
    world.account.add()
    await world.orchestrator().stop("arena-1")
    assert world.account.called("stop") == ["r1"]


async def test_a_stop_that_fails_can_be_repeated(world: AccountWorld) -> None:
    """It is written down before Edgegap is told."""
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec())
    world.account.errors["stop"] = [Unreachable("no answer", sent=True)]
    with pytest.raises(Unreachable):
        await orchestrator.stop("arena-1")
    order = await world.order()
    assert order is not None
    assert order.state is OrderState.STOPPED
    await orchestrator.stop("arena-1")
    assert world.account.called("stop") == ["r1", "r1"]


@pytest.mark.parametrize(("after", "again"), [(14.0, False), (16.0, True)])
async def test_one_that_goes_on_after_its_stop_is_told_again(
    world: AccountWorld, after: float, again: bool
) -> None:
    """Every 15 seconds at most, and it counts as running again a minute after the first time."""
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec())
    world.account.becomes("r1", running=True)
    await orchestrator.stop("arena-1")
    world.clock.seconds = after
    assert await orchestrator.list() == []
    await world.stopped(*["r1"] * (1 + again))
    world.clock.seconds = after + STOPPING + 1
    assert [one.native_id for one in await orchestrator.list()] == ["r1"]


async def test_a_stop_in_the_background_that_fails_is_repeated_by_the_next_listing(
    world: AccountWorld,
) -> None:
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec())
    double = world.account.add()
    world.account.errors["stop"] = [Unreachable("no answer", sent=True)]
    await orchestrator.list()
    await world.stopped(double)
    await orchestrator.list()
    await world.stopped(double, double)
    await orchestrator.list()
    await asyncio.sleep(0)
    await world.stopped(double, double)


async def test_what_was_told_to_stop_is_forgotten_when_it_is_gone(world: AccountWorld) -> None:
    """Not before the list must have noticed: until then it is not told again when it shows up."""
    orchestrator = world.orchestrator()
    await orchestrator.deploy(spec())
    world.account.becomes("r1", running=True)
    await orchestrator.stop("arena-1")
    world.account.unlisted.add("r1")
    world.clock.seconds = STOPPING - 1
    await orchestrator.list()
    world.account.unlisted.clear()
    world.clock.seconds = STOPPING + 1
    assert [one.native_id for one in await orchestrator.list()] == ["r1"]  # still known to have been told
    world.account.unlisted.add("r1")
    world.clock.seconds = 3 * STOPPING
    await orchestrator.list()
    world.account.unlisted.clear()
    assert await orchestrator.list() == []  # told anew


async def test_what_has_no_order_any_more_is_forgotten_by_a_later_listing(world: AccountWorld) -> None:
    """A deployment's status is kept as long as its order, and a minute after it was heard: orders are read first."""
    orchestrator = world.orchestrator()
    for number in (1, 2):
        await orchestrator.deploy(spec(f"arena-{number}"))
        world.account.becomes(f"r{number}", running=True)
        await orchestrator.get(f"arena-{number}")
    await world.buckets.edgegap_orders.delete("arena-1")
    world.account.forgets("r1")
    for seconds, known in ((STOPPING - 1, "arena-1"), (STOPPING + 1, None)):
        world.clock.seconds = seconds
        await orchestrator.list()
        assert await orchestrator.deployment_named("r1") == known
    assert await orchestrator.deployment_named("r2") == "arena-2"


async def test_closing_ends_a_listing_that_is_under_way(world: AccountWorld) -> None:
    began, never = asyncio.Event(), asyncio.Event()

    async def deployments() -> list[Server]:
        began.set()
        await never.wait()
        return []

    world.account.deployments = deployments  # type: ignore[method-assign]
    orchestrator = world.orchestrator()
    listing = asyncio.ensure_future(orchestrator.list())
    await began.wait()
    await orchestrator.close()
    async with asyncio.timeout(20):
        await asyncio.wait([listing])
    assert listing.cancelled() or listing.exception() is not None


# events


async def heard(orchestrator: EdgegapOrchestrator, count: int) -> list[RunState]:
    events = orchestrator.events()
    async with asyncio.timeout(2):
        return [(await anext(events)).state for _ in range(count)]


async def test_that_a_server_runs_and_that_it_ends_is_heard_once_each(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    hearing = asyncio.ensure_future(heard(orchestrator, 2))
    await orchestrator.deploy(spec())
    await eventually(lambda: world.account.called("status"), "it is polled")
    world.account.becomes("r1", running=True)
    await eventually(lambda: _reads(world, orchestrator), "it runs")
    for _ in range(3):
        world.clock.seconds += 1.0
        await orchestrator.get("arena-1")
    await orchestrator.stop("arena-1")
    assert await hearing == [RunState.RUNNING, RunState.STOPPED]


async def _reads(world: AccountWorld, orchestrator: EdgegapOrchestrator) -> bool:
    found = await orchestrator.get("arena-1")
    return found is not None and found.state is RunState.RUNNING


async def test_one_that_runs_or_was_stopped_is_polled_no_more(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    hearing = asyncio.ensure_future(heard(orchestrator, 2))
    for number in (1, 2):
        await orchestrator.deploy(spec(f"arena-{number}"))
    world.account.becomes("r1", running=True)
    await world.orchestrator().stop("arena-2")  # by another matchmaker
    await eventually(lambda: world.account.called("status").count("r1") >= 1, "it was polled")

    async def quiet() -> bool:
        before = len(world.account.calls)
        await asyncio.sleep(0.1)  # five polls
        return len(world.account.calls) == before

    await eventually(quiet, "nothing is polled")
    hearing.cancel()


async def test_a_poll_that_fails_keeps_none_from_being_polled(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    hearing = asyncio.ensure_future(heard(orchestrator, 1))
    await orchestrator.deploy(spec())
    world.account.errors["status"] = [Unreadable("no JSON"), Unreachable("away", sent=True)]
    world.account.becomes("r1", running=True)
    assert await hearing == [RunState.RUNNING]


@pytest.mark.parametrize("why", ["many", "no status is free"])
async def test_many_are_polled_by_the_list(world: AccountWorld, why: str) -> None:
    """And a few of those that it does not show as running by their status, which tells more."""
    orchestrator = world.orchestrator()
    count = 6 if why == "many" else 1
    for number in range(count):
        await orchestrator.deploy(spec(f"arena-{number}"))
        if number:
            world.account.becomes(f"r{number + 1}", running=True)
    world.account.becomes("r1", ended=True, failed=True, reason="no image")
    world.account.status_is_free = why == "many"
    await asyncio.sleep(0.02)  # all are due by then
    states = await heard(orchestrator, count)
    assert sorted(states) == sorted([RunState.STOPPED] + [RunState.RUNNING] * (count - 1))
    assert world.account.called("list")
    await world.stopped("r1")  # its status told that it failed
    assert set(world.account.called("status")) == {"r1"}


@pytest.mark.parametrize(("count", "by_list"), [(2, False), (3, True)])
async def test_a_few_are_polled_by_their_status(world: AccountWorld, count: int, by_list: bool) -> None:
    orchestrator = world.orchestrator()
    for number in range(count):
        await orchestrator.deploy(spec(f"arena-{number}"))
        world.account.becomes(f"r{number + 1}", running=True)
    await asyncio.sleep(0.02)  # all are due by then
    assert await heard(orchestrator, count) == [RunState.RUNNING] * count
    assert bool(world.account.called("list")) is by_list


async def test_of_many_that_start_each_has_its_turn_to_be_asked_for(world: AccountWorld) -> None:
    """The list does not tell which of them have failed."""
    orchestrator = world.orchestrator()
    for number in range(5):
        await orchestrator.deploy(spec(f"arena-{number}"))
    await asyncio.sleep(0.02)  # all are due by then
    hearing = asyncio.ensure_future(heard(orchestrator, 1))

    def asked() -> bool:
        world.clock.seconds += 0.01
        return len(world.account.called("status")) >= 10

    await eventually(asked, "statuses are read")
    assert set(world.account.called("status")[:10]) == {f"r{number}" for number in range(1, 6)}
    hearing.cancel()


async def test_one_that_was_stopped_meanwhile_is_not_asked_for(
    world: AccountWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its order read again."""
    read: list[str] = []
    get = OrderStore.get

    async def counted(self: OrderStore, deployment_id: str) -> Known:
        read.append(deployment_id)
        return await get(self, deployment_id)

    orchestrator = world.orchestrator()
    for number in (1, 2):
        await orchestrator.deploy(spec(f"arena-{number}"))
    await world.orchestrator().stop("arena-2")
    monkeypatch.setattr(OrderStore, "get", counted)
    hearing = asyncio.ensure_future(heard(orchestrator, 1))
    await eventually(lambda: read.count("arena-1") >= 4, "the other one is polled")
    assert read.count("arena-2") == 1
    assert set(world.account.called("status")) == {"r1"}
    hearing.cancel()


async def test_an_order_without_an_outcome_is_not_asked_for(world: AccountWorld) -> None:
    """It was placed anew meanwhile, by another matchmaker: Edgegap has no name for it yet."""
    orchestrator = world.orchestrator()
    for number in (1, 2):
        await orchestrator.deploy(spec(f"arena-{number}"))
    await world.write(ordered(OrderState.ORDERING, ""))
    hearing = asyncio.ensure_future(heard(orchestrator, 1))
    await eventually(lambda: world.account.called("status").count("r2") >= 3, "the other one is polled")
    assert set(world.account.called("status")) == {"r2"}
    hearing.cancel()
    await asyncio.wait([hearing])


async def test_polling_that_failed_for_a_reason_of_ours_begins_again_with_the_next_listener(
    world: AccountWorld, caplog: pytest.LogCaptureFixture
) -> None:
    """The present ones end: their owner begins anew."""
    orchestrator = world.orchestrator()
    world.account.errors["status"] = [ZeroDivisionError("ours")]  # type: ignore[list-item]
    await orchestrator.deploy(spec())
    world.account.becomes("r1", running=True)
    with pytest.raises(StopAsyncIteration):
        async with asyncio.timeout(2):
            await anext(orchestrator.events())
    assert "ours" in caplog.text
    assert await heard(orchestrator, 1) == [RunState.RUNNING]


async def test_an_outcome_that_could_not_be_written_is_written_by_the_next_listing(
    world: AccountWorld, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    adopt, failed = OrderStore.adopt, 0

    async def failing(self: OrderStore, deployment_id: str, request_id: str) -> None:
        nonlocal failed
        failed += 1
        if failed == 1:
            raise OrchestratorUnavailable("NATS is away")
        await adopt(self, deployment_id, request_id)

    monkeypatch.setattr(OrderStore, "adopt", failing)
    await world.write(ordered(OrderState.ORDERING, ""))
    world.account.add()
    orchestrator = world.orchestrator()
    assert [one.native_id for one in await orchestrator.list()] == ["r1"]
    await eventually(lambda: failed == 1, "it has failed")
    await orchestrator.list()

    async def adopted() -> bool:
        return await world.order() == ordered()

    await eventually(adopted, "its outcome is written", 2)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_young_one_that_ran_and_is_missing_from_the_list_is_asked_for(world: AccountWorld) -> None:
    """One that only starts may still appear."""
    orchestrator = world.orchestrator()
    for number in (1, 2):
        await orchestrator.deploy(spec(f"arena-{number}"))
    world.account.becomes("r1", running=True)
    await orchestrator.get("arena-1")
    world.account.unlisted |= {"r1", "r2"}
    world.clock.seconds = 2.0
    hearing = asyncio.ensure_future(heard(orchestrator, 2))
    await eventually(lambda: world.account.called("status").count("r2") >= 2, "the other one is polled")
    assert world.account.called("status").count("r1") == 1
    await orchestrator.list()
    await eventually(lambda: world.account.called("status").count("r1") == 2, "it is asked for", 2)
    hearing.cancel()


@pytest.mark.parametrize("name", ["arena-1", "unknown-1"])
async def test_a_webhook_makes_its_deployment_due_at_once(world: AccountWorld, name: str) -> None:
    """One of a deployment that this matchmaker has not heard of is another one's."""
    orchestrator = world.orchestrator(
        hook_url="https://play.example", hook_key="nobody can guess this key", poll_first=60, poll_slowest=60
    )
    hearing = asyncio.ensure_future(heard(orchestrator, 1))
    await orchestrator.deploy(spec())
    key = HookKey("nobody can guess this key", world.bus.settings.namespace)
    assert world.account.called("create")[0]["webhook_url"] == (
        f"https://play.example/hook/{key.path_name('arena-1')}"
    )
    world.account.becomes("r1", running=True)
    await asyncio.sleep(0.05)  # in which nobody asks for its status
    await world.bus.flush()
    assert world.account.called("status") == []
    await world.bus.publish(world.bus.subjects.webhook(name), b"")
    if name == "arena-1":
        assert await hearing == [RunState.RUNNING]
    else:
        await world.bus.flush()
        assert world.account.called("status") == []
        hearing.cancel()


async def test_listeners_end_when_the_orchestrator_closes(world: AccountWorld) -> None:
    orchestrator = world.orchestrator()
    listening = [asyncio.ensure_future(anext(orchestrator.events())) for _ in range(2)]
    await orchestrator.deploy(spec())
    await eventually(lambda: world.account.called("status"), "it is polled")
    await orchestrator.close()
    asked = len(world.account.called("status"))
    async with asyncio.timeout(2):
        for each in await asyncio.gather(*listening, return_exceptions=True):
            assert isinstance(each, StopAsyncIteration)
    await asyncio.sleep(0.05)  # in which it would be polled two times
    assert len(world.account.called("status")) == asked
    await orchestrator.close()
