"""Rooms of exactly N, as the matchmaker sees them: servers that are closed to new players, seats that nobody claims."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.matchmaker.world import ARENA, World
from tipoff_shared.messages import ProgressReport, SessionReady
from tipoff_shared.names import new_request_id
from tipoff_shared.records import Expect, SessionState

ROOM = msgspec.structs.replace(ARENA, seats=2, max_deployments=2, empty_ttl=60)

pytestmark = pytest.mark.row(91)


async def is_locked(world: World, deployment_id: str) -> bool:
    entry = await world.buckets.deployments.get(deployment_id)
    return entry is not None and entry.value.locked


async def expects(world: World, deployment_id: str) -> bool:
    entry = await world.buckets.deployments.get(deployment_id)
    return entry is not None and entry.value.expects


async def test_nobody_new_comes_to_a_locked_server_and_another_one_is_started(world: World) -> None:
    """Who has a seat keeps it, claimed or not."""
    game = msgspec.structs.replace(ROOM, seats=3)
    async with world.matchmaker(game):
        ann, bob = await world.play(), await world.play()
        assert ann.deployment_id == bob.deployment_id
        server = world.server_of(ann)
        await server.connect(ann)
        await server.become(locked=True)
        await world.eventually(lambda: is_locked(world, server.id), "the matchmaker has read it")
        carol = await world.play()
        assert carol.deployment_id != server.id
        await server.connect(bob)
        await world.session_becomes(bob.session_id, SessionState.ACTIVE)
        assert sorted(await world.seats()) == sorted(one.session_id for one in (ann, bob, carol))


async def test_a_server_that_opens_again_takes_who_waits(world: World) -> None:
    game = msgspec.structs.replace(ROOM, max_deployments=1)
    async with world.matchmaker(game):
        ann = await world.play()
        server = world.server_of(ann)
        await server.connect(ann)
        await server.become(locked=True)
        await world.eventually(lambda: is_locked(world, server.id), "the matchmaker has read it")
        bob = await world.ask()
        report = await bob.until(ProgressReport)
        assert isinstance(report, ProgressReport)
        assert "closed to new players" in report.text
        await server.become(locked=False)
        ready = await bob.end()
        assert isinstance(ready, SessionReady)
        assert ready.deployment_id == server.id


async def test_a_locked_server_is_no_reserve(world: World) -> None:
    """`min_ready` is about servers for new players."""
    game = msgspec.structs.replace(ROOM, min_ready=1)
    async with world.matchmaker(game):
        await world.servers_ready(1)
        (first,) = world.servers.values()
        await first.become(locked=True)
        await world.servers_ready(2)


async def test_a_server_that_wants_to_hears_of_each_promised_seat_once(world: World) -> None:
    """And again when its request is repeated. One of an earlier release would log each as unreadable."""
    async with world.matchmaker(ROOM):
        old = await world.play()
        server = world.server_of(old)
        assert server.commands.empty()
        await server.become(expects=True)
        await world.eventually(lambda: expects(world, server.id), "the matchmaker has read it")
        request_id = new_request_id()
        for _ in range(2):
            new = await world.play(request_id=request_id, again=True)
            assert new.deployment_id == server.id
            command = await asyncio.wait_for(server.commands.get(), 20)
            assert isinstance(command, Expect)
            assert command.session_id == new.session_id
            assert 14 <= command.seconds <= 16
        await server.connect(new)
        await world.session_becomes(new.session_id, SessionState.ACTIVE)
        await world.play(request_id=request_id, again=True)
        assert server.commands.empty()


async def test_nobody_opens_an_empty_room_while_a_seat_may_become_free(world: World) -> None:
    """Ann and Bob want each other; somebody between them never connects. One more player, and a room is opened for
    both who wait."""
    game = msgspec.structs.replace(ROOM, min_ready=2, max_deployments=3, fill_rooms=True, claim_time=3)
    async with world.matchmaker(game, lease_ttl=0.2):
        await world.servers_ready(2)
        ann = await world.play()
        await world.server_of(ann).connect(ann)
        await world.session_becomes(ann.session_id, SessionState.ACTIVE)
        await world.play()  # and never connects
        bob = await world.ask()
        report = await bob.until(ProgressReport)
        assert isinstance(report, ProgressReport)
        assert "has not connected yet" in report.text
        ready = await bob.end(30)
        assert isinstance(ready, SessionReady)
        assert ready.deployment_id == ann.deployment_id


async def test_those_who_wait_open_a_room_when_they_are_more_than_the_promised_seats(world: World) -> None:
    game = msgspec.structs.replace(ROOM, min_ready=1, max_deployments=3, fill_rooms=True)
    async with world.matchmaker(game):
        await world.servers_ready(1)
        ann, bob = await world.play(), await world.play()
        assert ann.deployment_id == bob.deployment_id
        waiting = [await world.ask() for _ in range(3)]  # for two promised seats
        answers = [await one.end(30) for one in waiting[:2]]
        ready = [answer for answer in answers if isinstance(answer, SessionReady)]
        assert len(ready) == 2
        assert ready[0].deployment_id == ready[1].deployment_id != ann.deployment_id


async def test_who_waits_opens_a_room_as_soon_as_the_promised_seats_are_claimed(world: World) -> None:
    """Also when another matchmaker sees that."""
    game = msgspec.structs.replace(ROOM, min_ready=2, max_deployments=3, fill_rooms=True)
    async with world.matchmaker(game), world.matchmaker(game):
        await world.servers_ready(2)
        pair = [await world.play(), await world.play()]
        carol = await world.ask()
        await carol.until(ProgressReport)
        for one in pair:
            await world.server_of(one).connect(one)
        ready = await carol.end(30)
        assert isinstance(ready, SessionReady)
        assert ready.deployment_id != pair[0].deployment_id
