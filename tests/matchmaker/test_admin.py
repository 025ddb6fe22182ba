"""What a matchmaker answers operators, with its loops switched off: nothing but the request does anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import msgspec
import pytest
from nats.aio.msg import Msg

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World
from tests.polling import eventually
from tipoff.operate.admin import drain, kick, restart
from tipoff_shared.admin import MatchmakerStatus, decode_reply
from tipoff_shared.errors import Internal, TipoffError, Unavailable
from tipoff_shared.records import DeploymentRecord, DeploymentState, SessionState

READY, STARTING, GONE = DeploymentState.READY, DeploymentState.STARTING, DeploymentState.GONE
OVER = (DeploymentState.STOPPING, GONE)


@pytest.fixture
async def admin(fleet: Fleet) -> AsyncIterator[Fleet]:
    """Its matchmaker answers operators."""
    await fleet.parts.admin.open()
    yield fleet
    await fleet.parts.admin.stop()


def endings(fleet: Fleet) -> dict[str, str]:
    """Server -> why it is stopping, as soon as that is written."""
    seen: dict[str, str] = {}

    def changed(before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        if after.state in OVER:
            seen.setdefault(after.id, after.reason)

    fleet.parts.deployments.subscribe_states(changed)
    return seen


async def answers(fleet: Fleet, operation: str, data: bytes = b"{}") -> list[Msg]:
    """All that come while one matchmaker would answer several times."""
    world = fleet.world
    heard: list[Msg] = []
    inbox = world.bus.nc.new_inbox()
    subscription = await world.bus.nc.subscribe(inbox)
    await world.bus.publish(world.bus.subjects.admin(operation), data, reply=inbox)
    for _ in range(2):
        try:
            heard.append(await subscription.next_msg(timeout=20 if not heard else 0.3))
        except TimeoutError:
            break
    await subscription.unsubscribe()
    return heard


async def test_one_of_all_matchmakers_acts_and_each_tells_its_status(world: World) -> None:
    world.announce = False
    async with AsyncExitStack() as stack:
        for _ in range(2):
            parts = await stack.enter_async_context(world.parts())
            await parts.admin.open()
            stack.push_async_callback(parts.admin.stop)
        fleet = Fleet(world, parts)
        for operation, data in (
            ("kick", b'{"session_id": "none"}'),
            ("drain", b'{"deployment_id": "none"}'),
            ("restart", b'{"game": "none"}'),
            ("ban", b'{"kind": "nothing", "subject": "none"}'),
        ):
            assert len(await answers(fleet, operation, data)) == 1, operation
        told = [decode_reply(msg.data, MatchmakerStatus) for msg in await answers(fleet, "status")]
        assert len({status.instance for status in told}) == 2


async def test_who_has_stopped_answers_nobody(fleet: Fleet) -> None:
    await fleet.parts.admin.open()
    await fleet.parts.admin.stop()
    await fleet.parts.admin.stop()
    with pytest.raises(Unavailable, match="no matchmaker runs here"):
        await kick(fleet.world.bus, "any")


async def test_an_answer_in_hand_is_given_before_it_stops(
    admin: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin.server()
    fetch, gate, asked = admin.parts.deployments.fetch, asyncio.Event(), asyncio.Event()

    async def slow(deployment_id: str) -> object:
        asked.set()
        await gate.wait()
        return await fetch(deployment_id)

    monkeypatch.setattr(admin.parts.deployments, "fetch", slow)
    asking = asyncio.create_task(drain(admin.world.bus, "one"))
    await asked.wait()
    stopping = asyncio.create_task(admin.parts.admin.stop())
    gate.set()
    await stopping
    assert (await asking).deployment_id == "one"


async def test_more_requests_than_it_can_handle_are_asked_to_come_again(
    admin: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def slow(deployment_id: str) -> None:
        await gate.wait()

    monkeypatch.setattr(admin.parts.deployments, "fetch", slow)
    asking = [asyncio.create_task(drain(admin.world.bus, "one")) for _ in range(60)]
    done, _ = await asyncio.wait(asking, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    error = done.pop().exception()
    assert isinstance(error, Unavailable)
    assert str(error) == "too much in hand, ask again"
    assert error.retry_after == 1
    gate.set()
    results = await asyncio.gather(*asking, return_exceptions=True)
    codes = [result.code for result in results if isinstance(result, TipoffError)]
    assert (codes.count(503), codes.count(404)) == (10, 50)


async def test_a_mistake_is_logged_and_answered(admin: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(deployment_id: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(admin.parts.deployments, "fetch", wrong)
    with pytest.raises(TipoffError, match="made a mistake; it is logged") as caught:
        await drain(admin.world.bus, "one")
    assert caught.value.code == Internal.code


async def test_who_asks_without_an_inbox_gets_what_he_asked_for(admin: Fleet) -> None:
    await admin.server()
    await admin.world.bus.publish(admin.world.bus.subjects.admin("drain"), b'{"deployment_id": "one"}')
    await eventually(lambda: admin.asked("stop"), "it is drained")


# Drain.


@pytest.mark.parametrize("state", [None, GONE])
async def test_a_server_that_is_not_there_cannot_be_drained(
    admin: Fleet, state: DeploymentState | None
) -> None:
    if state is not None:
        await admin.server(state)
    with pytest.raises(TipoffError) as caught:
        await drain(admin.world.bus, "one")
    assert str(caught.value) == "there is no server one; `tipoff status` lists them"
    assert caught.value.code == 404


@pytest.mark.parametrize("now", [True, False])
async def test_an_occupied_server_is_stopped_at_once_only_where_that_is_asked_for(
    admin: Fleet, now: bool
) -> None:
    await admin.server(seats={"s": 9e9})
    admin.parts.trust.add("one")
    done = await drain(admin.world.bus, "one", now=now)
    assert done.state in (OVER if now else ("draining",))
    assert done.reason == "drained by an operator"
    assert admin.trusted() is not now
    await admin.settled()
    assert admin.asked("stop") == now


async def test_a_server_to_be_stopped_gets_no_players_meanwhile(
    admin: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stop may take a while to be written."""
    await admin.server(seats={"s": 9e9})
    admin.parts.trust.add("one")
    monkeypatch.setattr(admin.parts.stopper, "stop", lambda *_, **__: None)
    assert (await drain(admin.world.bus, "one", now=True)).state == "ready"
    assert not admin.trusted()


async def test_a_server_that_starts_is_stopped_at_once(admin: Fleet) -> None:
    await admin.server(STARTING)
    done = await drain(admin.world.bus, "one", "no longer needed")
    assert (done.state in OVER, done.seats, done.reason) == (True, 0, "no longer needed")


@pytest.mark.parametrize("operation", ["drain", "restart"])
async def test_a_server_whose_record_goes_meanwhile_is_gone(
    admin: Fleet, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    await admin.server(seats={"s": 9e9})

    deleted = admin.world.buckets.deployments.delete
    change = admin.parts.deployments.change

    async def changed(deployment_id: str, how: object) -> object:
        await deleted(deployment_id)
        return await change(deployment_id, how)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr(admin.parts.stopper, "stop", lambda *_, **__: None)
    monkeypatch.setattr(admin.parts.deployments, "change", changed)
    if operation == "drain":
        done = await drain(admin.world.bus, "one", now=True)
        assert (done.deployment_id, done.state, done.seats) == ("one", "gone", 0)
    else:
        assert (await restart(admin.world.bus, "arena")).servers == ["one"]


# Restart.


async def test_after_a_restart_is_answered_no_player_finds_the_servers_that_were_there(
    admin: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are written as stopping by then."""
    for id in ("one", "two"):
        await admin.server(id=id)
        admin.parts.trust.add(id)
    ended = endings(admin)
    update, gate = admin.world.buckets.deployments.update, asyncio.Event()

    async def slow(*args: object, **options: object) -> int:
        await gate.wait()
        return await update(*args, **options)  # type: ignore[arg-type] # as it was called

    monkeypatch.setattr(admin.world.buckets.deployments, "update", slow)
    asking = asyncio.create_task(restart(admin.world.bus, "arena", reason="new maps"))
    await eventually(lambda: not (admin.trusted("one") or admin.trusted("two")), "it has begun")
    done, _ = await asyncio.wait((asking,), timeout=0.2)
    assert not done
    gate.set()
    answer = await asking
    assert (answer.versions, sorted(answer.servers)) == (["1"], ["one", "two"])
    assert ended == {"one": "new maps", "two": "new maps"}
    await admin.settled()
    assert admin.asked("stop") == 2


async def test_a_restart_without_a_reason_has_one(admin: Fleet) -> None:
    await admin.server()
    ended = endings(admin)
    await restart(admin.world.bus, "arena")
    assert ended == {"one": "restarted by an operator"}


@pytest.mark.parametrize(
    ("version", "named"),
    [
        ("", "there is no game chess; there are: arena 1"),
        ("2", "there is no game chess 2; there are: arena 1"),
    ],
)
async def test_a_game_that_is_not_there_is_answered_with_those_that_are(
    admin: Fleet, version: str, named: str
) -> None:
    with pytest.raises(TipoffError) as caught:
        await restart(admin.world.bus, "chess", version)
    assert str(caught.value) == named
    assert caught.value.code == 404


async def test_a_restart_of_one_version_leaves_the_others_alone(world: World) -> None:
    world.announce = False
    async with world.parts(ARENA, msgspec.structs.replace(ARENA, version="2")) as parts:
        fleet = Fleet(world, parts)
        await parts.admin.open()
        await fleet.server()
        await fleet.server(id="two", version="2")
        done = await restart(world.bus, "arena", "2")
        assert (done.versions, done.servers) == (["2"], ["two"])
        assert fleet.record().state is READY
        await parts.admin.stop()


# Kick.


async def test_a_session_that_is_not_there_cannot_be_kicked(admin: Fleet) -> None:
    with pytest.raises(TipoffError) as caught:
        await kick(admin.world.bus, "none")
    assert str(caught.value) == "there is no session none; `tipoff status` lists them"
    assert caught.value.code == 404


async def test_a_kicked_session_is_closing_with_its_reason(admin: Fleet) -> None:
    await admin.server()
    await admin.session("s", SessionState.READY)
    done = await kick(admin.world.bus, "s")
    assert (done.state, done.deployment_id) == ("ready", "one")
    assert done.reason == "an operator ended the session"
