"""Several matchmaker processes read the events together; one that dies or stops with some in hand loses none."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.matchmaker_processes import GAME, matchmaker_processes
from tests.faults.real_servers import playing
from tests.isolated.world import IsolatedWorld
from tests.matchmaker.world import World
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import SessionState

pytestmark = pytest.mark.slow  # processes, and the time after which an event goes to another one

PLAYERS = 8


@pytest.mark.parametrize("fault", ["kill", "pause"])
async def test_leaves_are_missed_though_one_of_two_matchmakers_fails(
    isolated: IsolatedWorld, tmp_path: Path, fault: str
) -> None:
    """Both have asked for events; one is killed or stopped; all players leave."""
    world = isolated.world
    async with matchmaker_processes(world, tmp_path) as processes:
        first = await processes.start(game=GAME, profile="isolated")
        await processes.start(game=GAME, profile="isolated")
        players = [await world.play() for _ in range(PLAYERS)]
        async with AsyncExitStack() as stack:
            for ready in players:
                await stack.enter_async_context(playing(ready))
            for ready in players:
                await world.session_becomes(ready.session_id, SessionState.ACTIVE)
            getattr(first, fault)()
        began = time.monotonic()  # they have all left
        await world.eventually(lambda: _all_over(world, players), "all sessions are over", timeout=20)
        print(f"{fault}: all {PLAYERS} sessions over after {time.monotonic() - began:.1f} s")
        await world.eventually(lambda: world.seats_are([]), "all seats are free")


async def _all_over(world: World, players: list[SessionReady]) -> bool:
    records = [await world.session(ready.session_id) for ready in players]
    return all(record is None or record.state is SessionState.GONE for record in records)
