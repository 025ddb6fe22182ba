"""What the parts that use Edgegap's sessions make of each answer: creating, waiting, servers, seats, giving back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any

import msgspec
import pytest

from tests.edgegap.edgegap_world import sleeper, with_sessions
from tests.edgegap.session_account import (
    MATCH,
    SessionWorld,
    allocate,
    at_edgegap,
    group,
    server,
    settled,
)
from tests.polling import eventually
from tipoff_matchmaker.allocators.edgegap.session_watch import SessionLost, SessionWatch
from tipoff_matchmaker.allocators.interface import Progress
from tipoff_matchmaker.compose import Parts
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api.answers import Session
from tipoff_orchestrator_client.edgegap.api.errors import NoRoom, Rejected, Unreachable
from tipoff_shared.errors import OrchestratorFailed, SlowDown, Unavailable, UnknownGame
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import DeploymentRecord, DeploymentState, EdgegapSeat

READY, STOPPING = DeploymentState.READY, DeploymentState.STOPPING


@pytest.fixture
async def world(nats: Bus) -> SessionWorld:
    return await SessionWorld.on(nats)


@pytest.fixture
async def parts(world: SessionWorld) -> AsyncIterator[Parts]:
    async with world.parts() as parts:
        yield parts


def record_of(parts: Parts, request_id: str = "r1") -> DeploymentRecord:
    record = parts.deployments.get(request_id)
    assert record is not None
    return record


async def waits(parts: Parts, world: SessionWorld, allocation: AllocationRequest) -> asyncio.Task[Seats]:
    """Its task, as soon as it has asked for a session."""
    world.account.asked.clear()
    task = asyncio.create_task(allocate(parts, allocation))
    await world.account.asked.wait()
    return task


async def let_go(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


# Seats.


async def test_the_first_progress_comes_before_a_session_is_asked_for(
    parts: Parts, world: SessionWorld
) -> None:
    async with aclosing(at_edgegap(parts).allocate(group("a"))) as steps:
        assert await anext(steps) == Progress("Asking Edgegap for a seat", "")
        assert world.account.calls == []


async def test_who_plays_alone_has_one_session_and_one_seat(parts: Parts, world: SessionWorld) -> None:
    seats = await allocate(parts, group("a"))
    until = round(world.now + 30.0, 3)
    assert seats == Seats(("a",), record_of(parts), until, shared=False)
    assert seats.deployment.seats == {"a": until}
    (created,) = world.account.called("create")
    assert created == {
        "application": "arena-app",
        "version": "v1",
        "addresses": ["8.8.4.4"],
        "deployment_request_id": "",
        "webhook_url": "",
    }
    assert await world.seats() == {"a": EdgegapSeat("s1", ["a"])}
    assert await at_edgegap(parts).sessions() == {"a"}


async def test_each_of_a_group_has_a_session_on_the_server_of_the_first(
    parts: Parts, world: SessionWorld
) -> None:
    world.account.places = ["r7", "r8", "r9"]
    seats = await allocate(parts, group("a", "b", "c"))
    assert set(seats.deployment.seats) == {"a", "b", "c"}
    assert not seats.shared
    created = world.account.called("create")
    assert [one["deployment_request_id"] for one in created] == ["", "r7", "r7"]
    assert [one["addresses"] for one in created] == [["8.8.4.4"], ["1.1.1.1"], ["8.8.4.4"]]
    assert await world.seats() == {
        member: EdgegapSeat(session, [member])
        for member, session in {"a": "s1", "b": "s2", "c": "s3"}.items()
    }


async def test_a_group_waits_for_the_server_of_the_first_only(parts: Parts, world: SessionWorld) -> None:
    """The others ask for that server, so where they are need not be known."""
    task = await waits(parts, world, group("a", "b", "c"))
    world.account.new = {"ready": False, "request_id": ""}
    await eventually(lambda: len(world.account.called("create")) == 3, "each has asked")
    await eventually(lambda: len(world.account.sessions_there) == 3, "each has a session")
    for session_id in world.account.sessions_there:
        world.account.becomes(session_id, ready=True, request_id="r1", server=server("r1"))
    assert set((await task).deployment.seats) == {"a", "b", "c"}


async def test_a_match_has_one_session_with_an_address_for_each_player(world: SessionWorld) -> None:
    async with world.parts(MATCH) as parts:
        seats = await allocate(parts, group("a", "b", "c"))
        assert set(seats.deployment.seats) == {"a", "b", "c"}
        (created,) = world.account.called("create")
        assert created["addresses"] == ["8.8.4.4", "1.1.1.1", "8.8.4.4"]
        assert await world.seats() == dict.fromkeys("abc", EdgegapSeat("s1", ["a", "b", "c"]))


async def test_a_group_without_room_beside_its_first_gets_one_session_for_all(
    parts: Parts, world: SessionWorld
) -> None:
    create = world.account.create_session

    async def full(*args: Any, **options: Any) -> str:
        if options["deployment_request_id"]:
            raise Rejected("no room there", status=409)
        return await create(*args, **options)

    world.account.create_session = full  # type: ignore[method-assign]
    await allocate(parts, group("a", "b"))
    assert world.account.called("delete") == ["s1"]
    assert await world.seats() == dict.fromkeys("ab", EdgegapSeat("s2", ["a", "b"]))


@pytest.mark.parametrize(
    ("error", "beside"), [(Rejected("wrong", status=409), False), (Rejected("wrong", status=400), True)]
)
async def test_a_refused_session_is_an_error_of_the_orchestrator(
    parts: Parts, world: SessionWorld, error: Exception, beside: bool
) -> None:
    """Also a conflict of one that is to be on no given server; nothing is kept."""
    create = world.account.create_session

    async def refused(*args: Any, **options: Any) -> str:
        if bool(options["deployment_request_id"]) is beside:
            raise error
        return await create(*args, **options)

    world.account.create_session = refused  # type: ignore[method-assign]
    with pytest.raises(OrchestratorFailed, match="no server could be found") as raised:
        await allocate(parts, group("a", "b"))
    assert raised.value.retry_after == 5.0
    await settled(parts)
    assert await world.seats() == {}
    assert world.account.sessions_there == {}


async def test_a_session_that_exists_is_used_and_shared(parts: Parts, world: SessionWorld) -> None:
    first = await allocate(parts, group("a"))
    again = await allocate(parts, group("a"))
    assert again.shared
    assert again.deployment.id == first.deployment.id
    assert len(world.account.called("create")) == 1
    await at_edgegap(parts).undo(again)
    assert record_of(parts).seats, "another matchmaker may rely on it"
    assert await at_edgegap(parts).sessions() == {"a"}


async def test_sessions_of_some_of_the_members_are_given_back(parts: Parts, world: SessionWorld) -> None:
    await allocate(parts, group("b"))
    await allocate(parts, group("a", "b"))
    assert world.account.called("delete") == ["s1"]
    assert {seat.edgegap_session for seat in (await world.seats()).values()} == {"s2", "s3"}


async def test_an_unknown_game_has_no_sessions(parts: Parts, world: SessionWorld) -> None:
    with pytest.raises(UnknownGame):
        await allocate(parts, AllocationRequest("a", ("a",), "arena", "2"))
    assert world.account.calls == []


# Sessions that are lost.


async def test_a_lost_session_is_given_back_and_another_one_is_asked_for(
    parts: Parts, world: SessionWorld
) -> None:
    world.account.described = False
    world.account.servers["r8"] = server("r8", running=False, ended=True, reason="out of memory")
    world.account.places = ["r8", "r1"]
    seats = await allocate(parts, group("a"))
    assert seats.deployment.id == "r1"
    assert world.account.called("delete") == ["s1"]
    assert await world.seats() == {"a": EdgegapSeat("s2", ["a"])}


async def test_after_five_lost_sessions_the_player_hears_of_it(parts: Parts, world: SessionWorld) -> None:
    world.account.new = {"ready": False, "failed": "no image"}
    with pytest.raises(OrchestratorFailed, match="no server could be started") as raised:
        await allocate(parts, group("a"))
    assert raised.value.retry_after == 5
    assert len(world.account.called("create")) == 5
    assert world.account.called("delete") == ["s1", "s2", "s3", "s4", "s5"]
    assert await world.seats() == {}


@pytest.mark.parametrize("name", ["session", "look-up"])
async def test_pauses_double(world: SessionWorld, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """After each lost session, and after each failed look-up of a server."""
    sleep, pauses = asyncio.sleep, []

    async def noted(seconds: float, *result: Any) -> Any:
        pauses.append(seconds)
        return await sleep(seconds, *result)  # the code's own pause, noted

    expected = [0.003 * 2**number for number in range(1, 5)]
    if name == "session":
        world.account.new = {"ready": False, "failed": "no image"}
    else:
        world.account.described = False
        world.account.errors["status"] = [OrchestratorError("busy") for _ in range(4)]
    async with world.parts(backoff=0.003) as parts:
        monkeypatch.setattr(asyncio, "sleep", noted)
        with suppress(OrchestratorFailed):
            await allocate(parts, group("a"))
        monkeypatch.undo()
    assert [pause for pause in pauses if pause in expected] == expected


async def test_a_waiting_player_hears_why_a_session_was_lost(world: SessionWorld) -> None:
    """Once."""
    create = world.account.create_session

    async def then_starting(*args: Any, **options: Any) -> str:
        session_id = await create(*args, **options)
        world.account.new = {"ready": False}
        return session_id

    world.account.new = {"ready": False, "failed": "no image"}
    world.account.create_session = then_starting  # type: ignore[method-assign]
    heard: list[str] = []
    async with (
        asyncio.timeout(20),
        world.parts(progress_interval=0.05) as parts,
        aclosing(at_edgegap(parts).allocate(group("a"))) as steps,
    ):
        await anext(steps)
        async for step in steps:
            if isinstance(step, Seats):
                break
            assert step.text == "Edgegap is starting a server near you"
            heard.append(step.start_failed)
            if "no image" in heard[:-1]:
                world.account.becomes("s2", ready=True)
    assert heard.count("no image") == 1
    assert set(heard) == {"no image", ""}


async def test_members_on_several_servers_are_no_group(parts: Parts, world: SessionWorld) -> None:
    """Another matchmaker wrote them; they are given back."""
    world.account.sessions_there = {
        "x": Session("x", ready=True, request_id="r1", server=server("r1")),
        "y": Session("y", ready=True, request_id="r2", server=server("r2")),
    }
    await world.write("x", "a")
    await world.write("y", "b")
    seats = await allocate(parts, group("a", "b"))
    assert set(seats.deployment.seats) == {"a", "b"}
    assert sorted(world.account.called("delete")) == ["x", "y"]


async def test_a_server_without_room_in_our_records_is_no_place(parts: Parts, world: SessionWorld) -> None:
    await allocate(parts, group("a"))
    await parts.deployments.change("r1", lambda record: msgspec.structs.replace(record, locked=True))
    world.account.places = ["r1", "r2"]
    assert (await allocate(parts, group("b"))).deployment.id == "r2"
    assert "s2" in world.account.called("delete")
    assert set(record_of(parts).seats) == {"a"}


# Servers.


@pytest.mark.parametrize("described", [True, False])
async def test_a_server_is_looked_up_only_if_its_session_does_not_describe_it(
    parts: Parts, world: SessionWorld, described: bool
) -> None:
    world.account.described = described
    seats = await allocate(parts, group("a"))
    assert (seats.deployment.state, seats.deployment.id) == (READY, "r1")
    assert world.account.called("status") == ([] if described else ["r1"])


async def test_a_look_up_that_fails_is_tried_again(parts: Parts, world: SessionWorld) -> None:
    world.account.described = False
    world.account.errors["status"] = [OrchestratorError("busy") for _ in range(4)]
    assert (await allocate(parts, group("a"))).deployment.id == "r1"
    assert len(world.account.called("status")) == 5
    assert len(world.account.called("create")) == 1


async def test_a_server_that_cannot_be_looked_up_is_no_place(parts: Parts, world: SessionWorld) -> None:
    world.account.described = False
    world.account.errors["status"] = [OrchestratorError("busy") for _ in range(5)]
    world.account.places = ["r1", "r2"]
    assert (await allocate(parts, group("a"))).deployment.id == "r2"
    assert world.account.called("status") == ["r1"] * 5 + ["r2"]


@pytest.mark.row(102)
@pytest.mark.parametrize("known", ["unknown", "ready", "starting"])
async def test_a_session_that_describes_an_ended_server_leads_to_no_seat_there(
    world: SessionWorld, known: str
) -> None:
    """Also while our record of that server does not know yet, or somebody else still waits for it."""
    game = with_sessions(sleeper(ready="lease")) if known == "starting" else with_sessions(sleeper())
    async with world.parts(game) as parts:
        other = None
        if known == "starting":
            other = asyncio.create_task(allocate(parts, group("other")))
            await eventually(lambda: parts.deployments.get("r1"), "a server starts")
        elif known == "ready":
            await allocate(parts, group("other"))
        world.account.servers["r1"] = server("r1", running=False, ended=True, reason="out of memory")
        world.account.places = ["r1", "r2"]
        task = asyncio.create_task(allocate(parts, group("a")))
        await eventually(lambda: parts.deployments.get("r2"), "the player's next session is elsewhere")
        await parts.deployments.change("r2", lambda record: msgspec.structs.replace(record, state=READY))
        assert (await task).deployment.id == "r2"
        lost = world.account.called("delete")
        assert lost == (["s1"] if known == "unknown" else ["s2"])
        record = parts.deployments.get("r1")
        assert record is None or "a" not in record.seats
        if other is not None:
            await let_go(other)
            await settled(parts)


async def test_players_of_one_server_share_the_wait_for_it(parts: Parts, world: SessionWorld) -> None:
    one, other = await asyncio.gather(allocate(parts, group("a")), allocate(parts, group("b")))
    assert one.deployment.id == other.deployment.id == "r1"
    assert set(record_of(parts).seats) == {"a", "b"}


async def test_a_record_that_another_matchmaker_wrote_is_used(world: SessionWorld) -> None:
    async with world.parts() as first:
        await allocate(first, group("a"))
    async with world.parts() as second:
        assert set((await allocate(second, group("b"))).deployment.seats) == {"a", "b"}


async def test_a_server_that_is_ending_is_no_place(parts: Parts, world: SessionWorld) -> None:
    await allocate(parts, group("a"))
    await parts.deployments.change("r1", lambda record: msgspec.structs.replace(record, state=STOPPING))
    world.account.places = ["r1", "r2"]
    assert (await allocate(parts, group("b"))).deployment.id == "r2"


async def test_a_server_that_is_not_ready_in_time_is_no_place(world: SessionWorld) -> None:
    game = with_sessions(sleeper(ready="lease", start_timeout=0.02))
    async with world.parts(game) as parts:
        with pytest.raises(OrchestratorFailed):
            await allocate(parts, group("a"))
        assert record_of(parts).seats == {}


# Who stops waiting, and matchmakers that stop.


async def test_who_stops_waiting_for_a_server_leaves_nothing(parts: Parts, world: SessionWorld) -> None:
    world.account.new = {"ready": False}
    task = await waits(parts, world, group("a", "b"))
    await eventually(lambda: len(world.account.called("create")) == 2, "both are asked for")
    await let_go(task)
    await settled(parts)
    assert world.account.sessions_there == {}
    assert await world.seats() == {}


async def test_who_goes_when_the_seat_has_just_been_found_leaves_nothing(world: SessionWorld) -> None:
    """Before it was told."""
    world.account.new = {"ready": False}
    async with world.parts(progress_interval=0.05) as parts:
        async with asyncio.timeout(20), aclosing(at_edgegap(parts).allocate(group("a"))) as steps:
            for _ in range(2):
                assert isinstance(await anext(steps), Progress)
            await eventually(lambda: world.account.sessions_there, "its session is there")
            world.account.becomes("s1", ready=True)
            await eventually(
                lambda: (record := parts.deployments.get("r1")) and record.seats, "its seat is written"
            )
        await settled(parts)
        assert record_of(parts).seats == {}
        assert await world.seats() == {}
        assert world.account.sessions_there == {}


async def test_a_create_that_has_begun_is_written_and_given_back(parts: Parts, world: SessionWorld) -> None:
    world.account.gate = asyncio.Event()
    task = await waits(parts, world, group("a"))
    await let_go(task)
    settling = asyncio.create_task(at_edgegap(parts).settle(30))
    await asyncio.sleep(0)
    assert not settling.done(), "it is still being created"
    world.account.gate.set()
    await settling
    await settled(parts)
    assert set(world.account.called("delete")) == {"s1"}
    assert await world.seats() == {}


async def test_settling_waits_no_longer_than_it_may(parts: Parts, world: SessionWorld) -> None:
    world.account.gate = asyncio.Event()
    task = await waits(parts, world, group("a"))
    await asyncio.wait_for(at_edgegap(parts).settle(0.01), 20)
    assert not task.done()
    world.account.gate.set()
    await task
    await at_edgegap(parts).settle(0)


async def test_who_stops_waiting_for_room_has_no_session_created(parts: Parts, world: SessionWorld) -> None:
    world.account.errors["create"] = [NoRoom("full")]
    task = await waits(parts, world, group("a"))
    await let_go(task)
    await settled(parts)
    assert len(world.account.called("create")) == 1
    assert world.account.sessions_there == {}


async def test_a_matchmaker_that_stops_keeps_the_sessions_and_answers_those_who_wait(
    parts: Parts, world: SessionWorld
) -> None:
    world.account.new = {"ready": False}
    task = await waits(parts, world, group("a"))
    await eventually(world.seats, "its session is written")
    for text in ("stopping", "stopped"):
        at_edgegap(parts).close(Unavailable(text))
    for _ in range(2):
        with pytest.raises(Unavailable, match="stopping"):
            await task
        task = asyncio.create_task(allocate(parts, group("b")))
    with pytest.raises(Unavailable, match="stopping"):
        await task
    await settled(parts)
    assert list(world.account.sessions_there) == ["s1"]
    assert await world.seats() == {"a": EdgegapSeat("s1", ["a"])}
    assert len(world.account.called("create")) == 1


async def test_who_waits_for_room_is_answered_when_the_matchmaker_stops(
    parts: Parts, world: SessionWorld
) -> None:
    world.account.errors["create"] = [NoRoom("full")]
    task = await waits(parts, world, group("a"))
    at_edgegap(parts).close(Unavailable("stopping"))
    with pytest.raises(Unavailable, match="stopping"):
        await task
    await settled(parts)
    assert len(world.account.called("create")) == 1


async def test_a_create_that_may_have_succeeded_is_not_repeated(parts: Parts, world: SessionWorld) -> None:
    world.account.errors["create"] = [Unreachable("no answer", sent=True)]
    with pytest.raises(OrchestratorFailed, match="no server could be found"):
        await allocate(parts, group("a"))
    assert len(world.account.called("create")) == 1


async def test_a_create_that_was_never_sent_is_repeated(parts: Parts, world: SessionWorld) -> None:
    world.account.errors["create"] = [Unreachable("no connection", sent=False) for _ in range(4)]
    await allocate(parts, group("a"))
    assert len(world.account.called("create")) == 5
    world.account.errors["create"] = [Unreachable("no connection", sent=False) for _ in range(5)]
    with pytest.raises(OrchestratorFailed):
        await allocate(parts, group("b"))


async def test_a_session_that_cannot_be_written_is_deleted(
    parts: Parts, world: SessionWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> int:
        raise Unavailable("NATS is away")

    monkeypatch.setattr(world.buckets.edgegap_sessions, "create", away)
    with pytest.raises(Unavailable, match="NATS is away"):
        await allocate(parts, group("a"))
    assert world.account.called("delete") == ["s1"]
    world.account.errors["delete"] = [OrchestratorError("away, too")]
    with pytest.raises(Unavailable, match="NATS is away"):
        await allocate(parts, group("b"))


@pytest.mark.parametrize("whole", [True, False])
async def test_the_first_matchmaker_that_writes_a_session_wins(
    parts: Parts, world: SessionWorld, whole: bool
) -> None:
    """If it has written those of all members. The session of the later one is deleted."""
    create = world.account.create_session

    async def beaten(*args: Any, **options: Any) -> str:
        await world.write("x", ("a", "b") if whole else ("a",))
        return await create(*args, **options)

    world.account.sessions_there["x"] = Session("x", ready=True, request_id="r1", server=server("r1"))
    world.account.create_session = beaten  # type: ignore[method-assign]
    async with world.parts(MATCH) as match:
        if whole:
            seats = await allocate(match, group("a", "b"))
            assert seats.shared
            assert world.account.called("delete") == ["s1"]
            assert list(world.account.sessions_there) == ["x"]
        else:
            with pytest.raises(Unavailable, match="another matchmaker") as raised:
                await allocate(match, group("a", "b"))
            assert raised.value.retry_after == 1
            await settled(match)
            assert world.account.sessions_there == {}
            assert await world.seats() == {}


@pytest.mark.row(102)
@pytest.mark.parametrize("written", ["b", "c", "bc"])
async def test_a_session_that_was_just_deleted_is_nobodys(world: SessionWorld, written: str) -> None:
    """Another matchmaker has written seats of later members only: the first member's seat names the deleted one."""
    note = world.buckets.edgegap_sessions.create

    async def then_beaten(member: str, seat: EdgegapSeat) -> int:
        revision = await note(member, seat)
        if member == "a":
            await world.write("x", written)
        return revision

    world.account.sessions_there["x"] = Session("x", ready=True, request_id="r1", server=server("r1"))
    async with world.parts(MATCH) as match:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.buckets.edgegap_sessions, "create", then_beaten)
            with pytest.raises(Unavailable, match="another matchmaker") as raised:
                await allocate(match, group("a", "b", "c"))
        assert raised.value.retry_after == 1
        await settled(match)
        assert await world.seats() == {}
        assert world.account.sessions_there == {}
        assert set((await allocate(match, group("a", "b", "c"))).deployment.seats) == {"a", "b", "c"}


# The share of an address.


async def test_an_address_holds_no_more_seats_than_its_share(world: SessionWorld) -> None:
    async with world.parts(unclaimed_per_address=1) as parts:
        seats = await allocate(parts, group("a"))
        with pytest.raises(SlowDown):
            await allocate(parts, group("b"))
        assert len(world.account.called("create")) == 1
        await at_edgegap(parts).undo(seats)
        await allocate(parts, group("c"))


async def test_who_fails_holds_no_share(world: SessionWorld) -> None:
    async with world.parts(unclaimed_per_address=1) as parts:
        world.account.errors["create"] = [Rejected("wrong", status=400)]
        with pytest.raises(OrchestratorFailed):
            await allocate(parts, group("a"))
        await allocate(parts, group("b"))


# Giving back.


async def test_undone_seats_are_given_back(parts: Parts, world: SessionWorld) -> None:
    """Twice is once, and a server whose record has gone changes nothing."""
    seats = await allocate(parts, group("a", "b"))
    for _ in range(2):
        await at_edgegap(parts).undo(seats)
    assert record_of(parts).seats == {}
    assert await world.seats() == {}
    assert sorted(world.account.called("delete")) == ["s1", "s2"]
    seats = await allocate(parts, group("c"))
    await world.buckets.deployments.delete("r1")
    parts.deployments.vanished("r1")
    await at_edgegap(parts).undo(seats)
    assert await world.seats() == {}


async def test_an_undo_that_edgegap_does_not_answer_is_left_to_the_deadline(
    parts: Parts, world: SessionWorld
) -> None:
    seats = await allocate(parts, group("a"))
    world.account.errors["delete"] = [OrchestratorError("away")]
    await at_edgegap(parts).undo(seats)
    assert record_of(parts).seats == {}
    assert (await world.seats())["a"].left


async def test_a_later_seat_of_the_same_member_is_not_undone(parts: Parts, world: SessionWorld) -> None:
    seats = await allocate(parts, group("a"))
    world.now += 1
    await allocate(parts, group("a"))
    await at_edgegap(parts).undo(seats)
    assert set(record_of(parts).seats) == {"a"}


@pytest.mark.parametrize("deployment_id", ["r1", "gone", ""])
async def test_a_released_seat_is_given_back(parts: Parts, world: SessionWorld, deployment_id: str) -> None:
    """With its session, whether its server is known or not."""
    await allocate(parts, group("a", "b"))
    await at_edgegap(parts).release("a", "a", deployment_id=deployment_id)
    assert set(record_of(parts).seats) == ({"b"} if deployment_id == "r1" else {"a", "b"})
    assert set(await world.seats()) == {"b"}
    assert world.account.called("delete") == ["s1"]


async def test_sessions_are_those_that_edgegap_has_and_nobody_left(parts: Parts, world: SessionWorld) -> None:
    for id in ("x", "y"):
        world.account.sessions_there[id] = Session(id, ready=True)
    await world.write("x", "ab", left="b")
    await world.write("y", "c")
    await world.write("gone", "d")
    assert await at_edgegap(parts).sessions() == {"a", "c"}
    world.account.errors["sessions"] = [OrchestratorError("away")]
    with pytest.raises(Unavailable, match="does not list"):
        await at_edgegap(parts).sessions()


# The store of seats.


async def test_a_seat_is_written_once(world: SessionWorld) -> None:
    await world.store.note("a", EdgegapSeat("x", ["a"]))
    with pytest.raises(LostRace):
        await world.store.note("a", EdgegapSeat("y", ["a"]))
    assert await world.store.known("ab") == {"a": "x"}
    assert world.account.calls == []


async def test_who_has_left_is_not_known(world: SessionWorld) -> None:
    await world.write("x", "ab", left="a")
    assert await world.store.known("abc") == {"b": "x"}


async def test_a_session_is_deleted_with_its_last_member(world: SessionWorld) -> None:
    await world.write("x", "abc")
    for member in "aab":
        await world.store.release(member)
    assert world.account.called("delete") == []
    assert {member for member, seat in (await world.seats()).items() if seat.left} == {"a", "b"}
    await world.store.release("c")
    assert world.account.called("delete") == ["x"]
    assert await world.seats() == {}
    await world.store.release("c")
    assert world.account.called("delete") == ["x"]


async def test_a_member_that_sits_elsewhere_meanwhile_keeps_that_seat(world: SessionWorld) -> None:
    """It keeps no session of before, and loses nothing with it."""
    await world.write("x", "ab")
    await world.write("y", "b")
    await world.store.release("a")
    assert world.account.called("delete") == ["x"]
    assert await world.seats() == {"b": EdgegapSeat("y", ["b"])}


async def test_what_marks_a_freed_seat_expires(world: SessionWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bucket does not grow with each player."""
    purge = world.buckets.edgegap_sessions.purge
    lives: list[float | None] = []

    async def noted(key: str, *, ttl: float | None = None) -> None:
        lives.append(ttl)
        await purge(key, ttl=ttl)

    monkeypatch.setattr(world.buckets.edgegap_sessions, "purge", noted)
    await world.write("x", "a")
    await world.store.release("a")
    assert lives == [60.0]


async def test_a_member_whose_record_has_gone_keeps_no_session(world: SessionWorld) -> None:
    await world.write("x", "abc")
    await world.buckets.edgegap_sessions.delete("b")
    await world.store.release("a")
    assert world.account.called("delete") == []
    await world.store.release("c")
    assert world.account.called("delete") == ["x"]
    assert await world.seats() == {}


async def test_a_release_that_edgegap_does_not_answer_is_repeated(world: SessionWorld) -> None:
    await world.write("x", "a")
    world.account.errors["delete"] = [OrchestratorError("away")]
    with pytest.raises(Unavailable, match="cannot be deleted yet: away"):
        await world.store.release("a")
    assert (await world.seats())["a"].left
    await world.store.release("a")
    assert world.account.called("delete") == ["x", "x"]
    assert await world.seats() == {}


# The watch.


class Watch:
    """A watch whose polls a test makes by webhooks: they say which names are known."""

    def __init__(self, world: SessionWorld) -> None:
        self.account = world.account
        self.watch = SessionWatch(world.account.client, self)  # type: ignore[arg-type] # a loop that a test drives
        self.polled: list[str] = []
        self.now: list[str] = []

    def add(self, id: str) -> None:
        self.polled.append(id)

    def poll_now(self, id: str) -> None:
        self.now.append(id)

    def remove(self, id: str) -> None:
        self.polled.remove(id)

    async def run(self, poll: Any, hook_id: Any) -> None:
        self.poll, self.hook_id = poll, hook_id

    async def begin(self, *sessions: str, linked: bool = False) -> list[asyncio.Task[Any]]:
        await self.watch.run()
        wait = self.watch.until_linked if linked else self.watch.until_ready
        tasks = [asyncio.create_task(wait(one, f"hook-{one}")) for one in sessions]
        await asyncio.sleep(0)
        return tasks

    def there(self, session_id: str, **state: Any) -> None:
        self.account.sessions_there[session_id] = Session(session_id, **{"ready": False, **state})


async def test_a_session_is_ready_later_than_it_is_linked(world: SessionWorld) -> None:
    watch = Watch(world)
    (ready,) = await watch.begin("s")
    (linked,) = await watch.begin("s", linked=True)
    watch.there("s")
    await watch.poll(["s"])
    assert not linked.done()
    watch.there("s", request_id="r1", server=server("r1", running=False))
    await watch.poll(["s"])
    place = await linked
    assert (place.request_id, place.server) == ("r1", None), "of a server that starts nothing is believed"
    assert not ready.done()
    watch.there("s", request_id="r1", server=server("r1"), ready=True)
    await watch.poll(["s"])
    place = await ready
    assert (place.request_id, place.server) == ("r1", server("r1"))


async def test_a_name_is_known_while_its_session_is_waited_for(world: SessionWorld) -> None:
    watch = Watch(world)
    one, other = [*await watch.begin("s"), *await watch.begin("s")]
    assert watch.now == ["s", "s"]
    assert (watch.hook_id("hook-s"), watch.hook_id("s"), watch.hook_id("")) == ("s", None, None)
    await let_go(one)
    assert watch.hook_id("hook-s") == "s"
    assert watch.polled == ["s", "s"]
    await let_go(other)
    assert watch.hook_id("hook-s") is None
    assert watch.polled == ["s"]
    await watch.poll(["s"])
    assert world.account.called("session") == [], "nobody waits for it"


@pytest.mark.parametrize(
    ("state", "why"), [(None, "Edgegap has closed it"), ({"failed": "no image"}, "no image")]
)
@pytest.mark.parametrize("linked", [True, False])
async def test_a_session_that_has_failed_is_lost(
    world: SessionWorld, state: dict[str, Any] | None, why: str, linked: bool
) -> None:
    watch = Watch(world)
    (task,) = await watch.begin("s", linked=linked)
    if state is not None:
        watch.there("s", **state)
    await watch.poll(["s"])
    with pytest.raises(SessionLost, match=why):
        await task


async def test_many_are_read_by_one_list_and_the_unclear_ones_by_themselves(world: SessionWorld) -> None:
    watch = Watch(world)
    names = ["ready", "starts", "closed", "failed", "unread", "bare"]
    tasks = dict(zip(names, await watch.begin(*names), strict=True))
    watch.now.clear()
    watch.there("ready", ready=True, request_id="r1")
    watch.there("starts", request_id="r2")
    watch.there("failed", failed="no image")
    watch.there("unread", failed="no image")
    watch.there("bare", ready=True)
    await watch.poll([*names, "nobody's"])
    assert len(world.account.called("sessions")) == 1
    assert world.account.called("session") == ["closed", "failed"]
    assert watch.now == ["unread", "bare"]
    done = {name for name, task in tasks.items() if await has_ended(task)}
    assert done == {"ready", "closed", "failed"}
    await watch.poll(["unread", "bare"])
    assert len(world.account.called("sessions")) == 1
    assert world.account.called("session") == ["closed", "failed", "unread", "bare"]
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def has_ended(task: asyncio.Task[Any]) -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return task.done()
