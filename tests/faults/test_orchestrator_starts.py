"""Starts that fail: the orchestrator refuses, is away or has no room; servers come late, or are never ready."""

from __future__ import annotations

import time

import msgspec
import pytest

from tests.faults.fake_orchestrator import BUSY, deploys
from tests.matchmaker.world import ARENA, World, failed
from tipoff_orchestrator_client.base import (
    NoCapacity,
    OrchestratorUnavailable,
)
from tipoff_shared.messages import SessionReady

# 37: errors.


@pytest.mark.row(37)
async def test_a_deployment_is_tried_five_times_at_most(world: World) -> None:
    """Then its players are told, with a time to come back; nothing is left, and nobody hammers."""
    world.fake.fail("deploy", BUSY, times=1000)
    async with world.matchmaker(start_failures=3, breaker_pause=0.2):
        answers = await world.ask()
        error = failed(await answers.end())
        assert error.code == 502
        assert float(answers.headers["Retry-After"]) >= 5
        assert max(deploys(world).values()) == 5
        assert deploys(world).total() <= 5 + 2 + 2, "an open breaker lets one call of a start through"
        await world.nothing_is_left()


@pytest.mark.row(37)
async def test_retry_after_is_kept_to(world: World) -> None:
    """Two answers "not before 0.4 s": the third call comes 0.8 s later, and the player plays."""
    world.fake.fail("deploy", OrchestratorUnavailable("429", retryable=True, retry_after=0.4), times=2)
    async with world.matchmaker():
        began = time.monotonic()
        assert isinstance(await world.play(), SessionReady)
        assert time.monotonic() - began >= 0.8
        assert deploys(world).total() == 3


@pytest.mark.row(37)
async def test_while_the_orchestrator_is_away_players_are_told_at_once(world: World) -> None:
    """As soon as it has failed often enough; and when it is back, they play."""
    world.fake.fail("deploy", BUSY, times=7)
    async with world.matchmaker(start_failures=1, breaker_pause=1.0) as matchmaker:
        assert failed(await (await world.ask()).end()).code == 502
        calls = deploys(world).total()
        began = time.monotonic()
        answers = await world.ask()
        assert failed(await answers.end()).code == 502
        assert time.monotonic() - began < 0.5
        assert deploys(world).total() == calls, "it is left alone"

        async def back() -> bool:
            return matchmaker.parts.orchestrators["fake"].wait("deploy") == 0

        await world.eventually(back, "it may be asked again")
        world.fake.mend("deploy")
        assert isinstance(await world.play(), SessionReady)


@pytest.mark.row(37)
async def test_those_who_wait_meanwhile_are_told_how_long(world: World) -> None:
    """Not yet hopeless: they wait, hear when the next try is, and play."""
    world.fake.fail("deploy", BUSY, times=5)
    async with world.matchmaker(breaker_pause=1.0):
        answers = await world.ask()
        assert isinstance(await answers.end(), SessionReady)
        assert any("trying again in 1 s" in text for text in answers.progress)


@pytest.mark.row(37)
async def test_no_room_is_waited_out_as_long_as_was_asked(world: World) -> None:
    """Quota is not trouble: no breaker, no failure, but no hammering either."""
    world.fake.fail("deploy", NoCapacity("quota", retryable=True, retry_after=0.3), times=2)
    async with world.matchmaker() as matchmaker:
        began = time.monotonic()
        assert isinstance(await world.play(), SessionReady)
        assert time.monotonic() - began >= 0.6
        assert matchmaker.parts.orchestrators["fake"].describe().state == "closed"


# 38: late servers.


@pytest.mark.row(38)
async def test_a_server_created_after_everybody_gave_it_up_is_stopped(world: World) -> None:
    """The call timed out, the server was stopped, and then it comes: an orphan, gone within two grace periods."""
    grace = 0.6
    world.fake.start_late(1.0)
    async with world.matchmaker(deploy_tries=1, orphan_grace=grace, start_failures=5):
        ready = await world.play()
        (late,) = [id for id in deploys(world) if id != ready.deployment_id]

        async def came() -> bool:
            return world.fake.started[late] == 1

        await world.eventually(came, "the late one is there")
        began = time.monotonic()

        async def went() -> bool:
            return late not in world.fake.living

        await world.eventually(went, "the late one is stopped")
        assert time.monotonic() - began < 2 * grace + 1
        assert ready.deployment_id in world.fake.living


@pytest.mark.row(38)
async def test_a_server_that_was_started_though_the_answer_was_lost_is_used(world: World) -> None:
    """The repeat finds it by its tag."""
    world.fake.lose_answers(2)
    async with world.matchmaker():
        ready = await world.play()
        assert dict(world.fake.started) == {ready.deployment_id: 1}


# 41: never ready.


@pytest.mark.row(41)
async def test_a_server_that_is_never_ready_costs_a_player_no_more_than_the_deadline(world: World) -> None:
    """408 when it is over; the server is deleted."""
    world.fake.never_ready(100)
    async with world.matchmaker(msgspec.structs.replace(ARENA, start_timeout=1.2)):
        began = time.monotonic()
        answers = await world.ask(timeout=1.0)
        assert failed(await answers.end()).code == 408
        assert 0.9 < time.monotonic() - began < 2
        await world.nothing_is_left()
