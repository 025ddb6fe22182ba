"""What Edgegap does wrong, and what becomes of it: rows 37 to 45, on the emulator that misbehaves to order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tests.edgegap.edgegap_world import sleeper, with_sessions
from tests.matchmaker.world import failed
from tipoff_edgegap_emulator import (
    Drip,
    Fail,
    Garbage,
    GoesWrong,
    Hold,
    Huge,
    NeverReady,
    Repeat,
    Rules,
    Silent,
    Spoil,
    Vanishes,
    empty_list,
    null_address,
    port_70000,
    without_ports,
)
from tipoff_orchestrator_client.base import DeploySpec, OrchestratorUnavailable, RunState
from tipoff_shared.hooks import HookKey
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import DeploymentState, SessionState

pytestmark = pytest.mark.slow  # half a second each, and there are many

Edgegap = Callable[..., Any]

GAME = sleeper(request_timeout=8.0, start_timeout=4.0)
BOTH = pytest.mark.parametrize(
    "game", [pytest.param(GAME, id="deployments"), pytest.param(with_sessions(GAME), id="sessions")]
)


def create_of(game: Any) -> str:
    return "session.create" if game.orchestrator == "edgegap-sessions" else "deploy"


def spec(id: str = "arena-1") -> DeploySpec:
    return DeploySpec(id, "arena", "1", 4, ("203.0.113.9",))


# 37


@pytest.mark.row(37)
@BOTH
@pytest.mark.parametrize("how", [Fail(429, retry_after=0.2), Fail(503, retry_after=0.2)], ids=["429", "503"])
async def test_what_certainly_created_nothing_is_tried_again(edgegap: Edgegap, game: Any, how: Fail) -> None:
    """After what was asked for; the player plays."""
    if how.status == 503 and game.orchestrator == "edgegap-sessions":
        pytest.skip(
            "a session that may have been created is not asked for twice: nobody would find the first"
        )
    async with edgegap(game) as world:
        world.emulator.misbehave(create_of(game), how, times=2)
        began = time.monotonic()
        assert isinstance(await world.play(), SessionReady)
        assert time.monotonic() - began >= 0.4
        assert world.emulator.count(create_of(game)) == 3
        assert len(world.alive) == 1


@pytest.mark.row(37)
@BOTH
async def test_it_is_tried_five_times_at_most(edgegap: Edgegap, game: Any) -> None:
    """The player gets an error with a Retry-After; nothing is left."""
    async with edgegap(game, changes={"start_failures": 1, "breaker_pause": 0.5}) as world:
        world.emulator.misbehave(create_of(game), Fail(429))
        error = failed(await (await world.ask()).end(timeout=15))
        assert error.code == 502
        assert world.emulator.count(create_of(game)) <= 5
        await world.nothing_is_left()


@pytest.mark.row(37)
@BOTH
async def test_what_is_refused_is_not_tried_again(edgegap: Edgegap, game: Any) -> None:
    """A wrong request stays wrong: the player hears so at once."""
    async with edgegap(game) as world:
        world.emulator.misbehave(create_of(game), Fail(400, "version is not active"))
        began = time.monotonic()
        assert failed(await (await world.ask()).end()).code == 502
        assert time.monotonic() - began < 2
        assert world.emulator.count(create_of(game)) == 1


async def test_no_room_is_waited_out(edgegap: Edgegap) -> None:
    """422 is no trouble: the player waits, and plays when there is room."""
    async with edgegap(sleeper(request_timeout=20.0), rules=Rules(start_delay=0.1, capacity=0)) as world:
        answers = await world.ask()
        await world.emulator.until(lambda e: e.count("deploy", 422) >= 1)
        world.emulator.state.rules = Rules(start_delay=0.1)
        assert isinstance(await answers.end(timeout=15), SessionReady)


# 38


@pytest.mark.row(38)
async def test_a_create_without_an_answer_is_looked_for_before_it_is_repeated(edgegap: Edgegap) -> None:
    """It was created, and only its answer was lost: it is the one that is used."""
    async with edgegap(GAME, matchmaker=False, timeout=0.4) as world, world.orchestrator() as orchestrator:
        world.emulator.misbehave("deploy", Silent(carried_out_after=0.1), times=1)
        deployment = await orchestrator.deploy(spec())
        assert [deployment.native_id] == [one.request_id for one in world.alive]
        assert world.emulator.count("deploy") == 1


@pytest.mark.row(38)
async def test_a_server_created_late_is_stopped(edgegap: Edgegap) -> None:
    """The create was given up and repeated; when the first one comes to be all the same, it is the one too many."""
    async with edgegap(GAME, matchmaker=False, timeout=0.3) as world, world.orchestrator() as orchestrator:
        late = world.emulator.misbehave("deploy", Silent(carried_out_after=1.0), times=1)
        with pytest.raises(OrchestratorUnavailable) as caught:
            await orchestrator.deploy(spec())
        assert caught.value.may_have_started
        assert caught.value.retryable
        kept = await orchestrator.deploy(spec())
        await world.emulator.until(lambda e: late.taken == 1 and len(e.state.living()) == 2)
        listed = await orchestrator.list()
        assert [one.native_id for one in listed] == [kept.native_id]
        await world.emulator.until(lambda e: [o.request_id for o in e.state.living()] == [kept.native_id])


@pytest.mark.row(38)
async def test_a_server_created_after_its_stop_is_stopped(edgegap: Edgegap) -> None:
    """No player waits for it, and the next listing stops it."""
    async with edgegap(GAME, matchmaker=False, timeout=0.3) as world, world.orchestrator() as orchestrator:
        world.emulator.misbehave("deploy", Silent(carried_out_after=1.0), times=1)
        with pytest.raises(OrchestratorUnavailable):
            await orchestrator.deploy(spec())
        await orchestrator.stop("arena-1")
        assert (await orchestrator.deploy(spec())).state is RunState.STOPPED
        await world.emulator.until(lambda e: len(e.state.living()) == 1)
        assert await orchestrator.list() == []
        await world.emulator.until(lambda e: not e.state.living())


@pytest.mark.row(38)
async def test_a_late_server_is_gone_within_two_grace_periods(edgegap: Edgegap) -> None:
    """With a matchmaker: the player plays elsewhere, the late one is found by the reconciler."""
    changes = {"deploy_tries": 1, "orphan_grace": 0.6, "start_failures": 5}
    async with edgegap(sleeper(empty_ttl=60.0), timeout=0.3, changes=changes) as world:
        world.emulator.misbehave("deploy", Silent(carried_out_after=1.0), times=1)
        assert isinstance(await world.play(), SessionReady)
        await world.emulator.until(lambda e: len(e.state.living()) == 2)
        began = time.monotonic()
        await world.emulator.until(lambda e: len(e.state.living()) == 1)
        assert time.monotonic() - began <= 1.2 + 1.0


@pytest.mark.row(38)
async def test_another_matchmaker_finds_what_a_dead_one_has_ordered(edgegap: Edgegap) -> None:
    """Written down, or by its tag: never a second server."""
    async with edgegap(GAME, matchmaker=False) as world:
        async with world.orchestrator() as first:
            ordered = await first.deploy(spec())
        async with world.orchestrator() as second:
            assert (await second.deploy(spec())).native_id == ordered.native_id
            known = await second.get("arena-1")
            assert known is not None
            assert known.native_id == ordered.native_id
        await world.buckets.edgegap_orders.purge("arena-1")
        async with world.orchestrator() as third:
            assert [one.native_id for one in await third.list()] == [ordered.native_id]
            await third.stop("arena-1")
            await world.emulator.until(lambda e: not e.state.living())


@pytest.mark.row(38)
@pytest.mark.row(45)
async def test_what_a_dead_matchmaker_has_ordered_is_known_by_its_id(edgegap: Edgegap) -> None:
    """It died before the answer: the next listing finds it by its tag, and an empty list proves nothing."""
    async with edgegap(GAME, matchmaker=False, timeout=0.3) as world:
        async with world.orchestrator() as first:
            world.emulator.misbehave("deploy", Silent(carried_out_after=0.6), times=1)
            with pytest.raises(OrchestratorUnavailable):
                await first.deploy(spec())
        await world.emulator.until(lambda e: len(e.state.living()) == 1)
        async with world.orchestrator() as second:
            assert len(await second.list()) == 1

            async def noted() -> bool:
                entry = await world.buckets.edgegap_orders.get("arena-1")
                return entry is not None and entry.value.request_id == world.alive[0].request_id

            await world.eventually(noted, "its id is written down")
            world.emulator.misbehave("list", Spoil(empty_list))
            assert await second.get("arena-1") is not None


# 39, 40


@pytest.mark.row(39)
@pytest.mark.parametrize("how", [Drip(every=0.05), Huge()], ids=["slow drip", "100 MB"])
@pytest.mark.parametrize("operation", ["deploy", "status", "list"])
async def test_answers_are_bounded_in_time_and_size(edgegap: Edgegap, operation: str, how: Any) -> None:
    """A typed error, soon, without reading it all."""
    async with edgegap(GAME, matchmaker=False, timeout=0.5) as world, world.orchestrator() as orchestrator:
        if operation != "deploy":
            await orchestrator.deploy(spec())
            await asyncio.sleep(0.6)  # what was just heard answers for half a second
        world.emulator.misbehave(operation, how)
        calls = {
            "deploy": lambda: orchestrator.deploy(spec()),
            "status": lambda: orchestrator.get("arena-1"),
            "list": orchestrator.list,
        }
        began = time.monotonic()
        if operation == "deploy":  # it was created: that is found out
            assert (await calls[operation]()).native_id == world.alive[0].request_id  # type: ignore[union-attr] # by test
        else:
            with pytest.raises(OrchestratorUnavailable) as caught:
                await calls[operation]()
            assert caught.value.retryable
        assert time.monotonic() - began < 3


@pytest.mark.row(40)
@pytest.mark.parametrize(
    "how",
    [
        Garbage(),
        Garbage(b"[]"),
        Garbage(b"null"),
        Spoil(null_address),
        Spoil(without_ports),
        Spoil(port_70000),
    ],
    ids=["half JSON", "a list", "null", "null ip", "no ports", "port 70000"],
)
async def test_a_status_that_cannot_be_used_is_a_typed_error(edgegap: Edgegap, how: Any) -> None:
    """And the list still says that it runs."""
    async with (
        edgegap(GAME, matchmaker=False, rules=Rules(start_delay=0)) as world,
        world.orchestrator() as orchestrator,
    ):
        await orchestrator.deploy(spec())
        await world.emulator.until(lambda e: e.deployments[0].phase == "READY")
        await asyncio.sleep(0.6)  # what was just heard answers for half a second
        world.emulator.misbehave("status", how)
        if isinstance(how, Spoil):

            def spoil_ip(answer: Any) -> Any:
                changed = how.change(answer)
                for row in changed.get("data", []):
                    row.setdefault("fqdn", None)
                return changed

            world.emulator.misbehave("list", Spoil(spoil_ip))
        if how == Spoil(null_address):  # there is still a name that players can dial
            known = await orchestrator.get("arena-1")
            assert known is not None
            assert known.host == world.alive[0].request_id + ".pr.edgegap.net"
        else:
            with pytest.raises(OrchestratorUnavailable) as caught:
                await orchestrator.get("arena-1")
            assert caught.value.retryable
        listed = await orchestrator.list()
        assert [one.state for one in listed] == [RunState.RUNNING]


@pytest.mark.row(40)
@BOTH
async def test_a_server_nobody_can_reach_is_closed(edgegap: Edgegap, game: Any) -> None:
    """Its address stays invalid: the player gets an error in time, and the deployment is stopped."""
    game = msgspec.structs.replace(game, start_timeout=1.5, request_timeout=6.0)
    async with edgegap(game) as world:
        for operation in ("status", "list", "session.get"):
            world.emulator.misbehave(operation, Spoil(port_70000))
        error = failed(await (await world.ask()).end(timeout=12))
        assert error.code in (408, 502)
        world.emulator.behave()
        if game.orchestrator == "edgegap-sessions":  # the server is Edgegap's own to end: it stands empty
            await world.no_session_is_left()
        else:
            await world.nothing_is_left()


# 41, 42


@pytest.mark.row(41)
@BOTH
async def test_a_server_that_never_gets_ready_is_deleted(edgegap: Edgegap, game: Any) -> None:
    """408 or 502 at the deadline; nothing is left at Edgegap."""
    game = msgspec.structs.replace(game, start_timeout=1.0, request_timeout=2.5)
    async with edgegap(game) as world:
        world.emulator.misbehave("life", NeverReady())
        began = time.monotonic()
        assert failed(await (await world.ask()).end(timeout=10)).code in (408, 502)
        assert time.monotonic() - began < 4
        await world.no_session_is_left()
        if game.orchestrator == "edgegap":  # Edgegap ends what is on its way when it is there
            await world.eventually(world.all_are_told_to_stop, "Edgegap is told to stop them")


@pytest.mark.row(41)
async def test_why_a_start_failed_is_known_before_its_deadline(
    edgegap: Edgegap, caplog: pytest.LogCaptureFixture
) -> None:
    """Edgegap says error: the players of that server get another one at once."""
    async with edgegap(sleeper(start_timeout=8.0), hooks=True) as world:
        world.emulator.misbehave("life", GoesWrong("Pull image timeout exceeded"), times=1)
        began = time.monotonic()
        assert isinstance(await world.play(), SessionReady)
        assert time.monotonic() - began < 5
        assert world.emulator.count("deploy") == 2
        assert "did not start: Pull image timeout exceeded" in caplog.text


@pytest.mark.row(42)
@BOTH
@pytest.mark.parametrize("how", [None, Vanishes(0.3)], ids=["stopped there", "vanished"])
async def test_a_server_that_is_gone_ends_its_sessions(edgegap: Edgegap, game: Any, how: Any) -> None:
    """Within two polls (of 0.15 s here, and what the calls take)."""
    async with edgegap(game) as world:
        if how is not None:
            world.emulator.misbehave("life", how, times=1)
        ready = await world.play()
        await world.buckets.active_connections.put(ready.session_id, "1")
        if how is None:
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
            await world.emulator.kill_server(world.alive[0].request_id)
        await world.emulator.until(lambda e: not e.state.living())
        began = time.monotonic()
        await world.session_becomes(ready.session_id, SessionState.GONE)
        assert time.monotonic() - began < 2.0
        await world.nothing_is_left()


# 43


@pytest.mark.row(43)
@pytest.mark.parametrize("how", [Repeat(10), Hold(2)], ids=["ten times", "reordered"])
async def test_webhooks_are_only_hints(edgegap: Edgegap, how: Any) -> None:
    """Whatever their number and order, what counts is what Edgegap says when it is asked."""
    async with edgegap(sleeper(), hooks=True) as world:
        world.emulator.misbehave("webhook", how)
        seats = await asyncio.gather(*(world.play() for _ in range(6)))
        assert len({seat.deployment_id for seat in seats}) == 2
        assert len(world.alive) == 2


@pytest.mark.row(43)
async def test_a_webhook_that_lies_changes_nothing(edgegap: Edgegap) -> None:
    """With the right address and the worst of bodies: the server is asked after, and lives."""
    async with edgegap(sleeper(empty_ttl=60.0), hooks=True) as world:
        ready = await world.play()
        key = HookKey("nobody can guess this key", world.nats_settings.namespace)
        statuses = world.emulator.count("status") + world.emulator.count("list")
        for name, body in (
            (ready.deployment_id, {"request_id": "x", "running": False, "current_status": "TERMINATED"}),
            ("nobody-1", {"request_id": "y", "running": True}),
        ):
            url = f"{world.edgegap_settings.hook_url}/hook/{key.path_name(name)}"
            assert (await world.emulator.send_webhook(url, body)).outcome == 204
        await world.emulator.until(lambda e: e.count("status") + e.count("list") > statuses)
        record = await world.deployment_becomes(ready.deployment_id, DeploymentState.READY)
        assert ready.session_id in record.seats
        assert len(world.alive) == 1


@pytest.mark.row(42)
@pytest.mark.parametrize("how", [GoesWrong("no image"), Vanishes(0.1)], ids=["error", "vanished"])
async def test_what_has_ended_by_itself_is_forgotten_some_day(edgegap: Edgegap, how: Any) -> None:
    """The book does not grow, and what lies about in error is cleared away; a repeat of its deploy starts nothing."""
    async with edgegap(GAME, matchmaker=False) as world, world.orchestrator() as orchestrator:
        world.emulator.misbehave("life", how, times=1)
        await orchestrator.deploy(spec())

        async def noted() -> bool:
            await orchestrator.get("arena-1")
            entry = await world.buckets.edgegap_orders.get("arena-1")
            return entry is not None and entry.value.state == "stopped"

        await world.eventually(noted, "the order is over")
        await world.emulator.until(lambda e: not e.deployments)
        assert (await orchestrator.deploy(spec())).state is RunState.STOPPED


# 44, 45


@pytest.mark.row(44)
@pytest.mark.parametrize("status", [404, 410])
async def test_a_delete_of_what_is_gone_is_done(edgegap: Edgegap, status: int) -> None:
    """Both are success."""
    async with edgegap(GAME, matchmaker=False) as world, world.orchestrator() as orchestrator:
        await orchestrator.deploy(spec())
        world.emulator.misbehave("stop", Fail(status, carried_out=True))
        await orchestrator.stop("arena-1")


@pytest.mark.row(44)
@BOTH
async def test_a_delete_that_fails_is_tried_again(edgegap: Edgegap, game: Any) -> None:
    """Until it is done: nothing leaks."""
    async with edgegap(game) as world:
        ready = await world.play()
        world.emulator.misbehave("stop", Fail(500), times=2)
        world.emulator.misbehave("session.delete", Fail(500), times=2)
        await world.buckets.active_connections.put(ready.session_id, "1")
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await world.buckets.active_connections.delete(ready.session_id)
        await world.nothing_is_left(timeout=15)


@pytest.mark.row(45)
@BOTH
async def test_an_empty_list_reaps_nothing(edgegap: Edgegap, game: Any) -> None:
    """Five servers, and for two seconds Edgegap lists none: all of them are asked after, and live."""
    game = msgspec.structs.replace(game, seats=1, empty_ttl=60.0)
    async with edgegap(game) as world:
        seats = [await world.play() for _ in range(5)]
        world.emulator.misbehave("list", Spoil(empty_list))
        for _ in range(8):
            await world.matchmakers[0].parts.reconciler.once()
            await asyncio.sleep(0.2)  # the reconciler's own cycles go on meanwhile
        assert len(world.alive) == 5
        records = {record.id: record.state for record in await world.deployments()}
        assert records == {seat.deployment_id: DeploymentState.READY for seat in seats}
