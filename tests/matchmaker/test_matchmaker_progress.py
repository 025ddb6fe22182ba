"""A start that takes long: players hear what it is busy with, and it is not given up while it says so."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.deployments.state_machine import given_time, planned, started
from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import DeploymentState

HASTY = msgspec.structs.replace(ARENA, start_timeout=1.0)


@pytest.mark.slow
async def test_players_hear_what_a_long_start_is_busy_with_and_it_is_not_given_up(world: World) -> None:
    """An image that takes 2.2 s to come, where 1 s is allowed between two words of it: one server, no other try."""
    world.fake.start_delay = 2.2
    async with world.matchmaker(HASTY), world.matchmaker(HASTY):
        answers = await world.ask()

        async def told_to_start() -> str:
            return next((id for operation, id in world.fake.calls if operation == "deploy"), "")

        deployment_id = await world.eventually(told_to_start, "it is told to start")
        for megabytes in range(6):
            await asyncio.sleep(0.4)  # as slowly as the image comes
            text = f"Fetching the game server's\nimage: {megabytes} of 6 MB\x1b[31m"
            world.fake.tell(
                Deployment(deployment_id, ARENA.name, ARENA.version, RunState.STARTING, reason=text)
            )
        assert isinstance(await answers.end(timeout=5), SessionReady)
        assert any("Fetching the game server's image: 2 of 6 MB [31m" in text for text in answers.progress)
        assert [id for operation, id in world.fake.calls if operation == "deploy"] == [deployment_id]


def test_time_is_given_to_a_start_alone() -> None:
    """Never less than it had, and never to what runs or ends."""
    record = started(planned("a-1", HASTY, 10.0))
    assert record.deadline == 11
    assert given_time(record, 15.0).deadline == 15
    assert given_time(record, 10.5) is record
    ready = msgspec.structs.replace(record, state=DeploymentState.READY)
    assert given_time(ready, 15.0) is ready
