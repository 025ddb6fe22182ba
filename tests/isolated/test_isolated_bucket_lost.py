"""NATS loses buckets, or everything, while people play on servers of the isolated profile: nobody is disturbed.

Such a server writes nothing itself. What it says counts as far as its seal, its seats and its orchestrator say so.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.test_nats_bucket_lost import LIKE_LIFE, TWO_SERVERS, Playing, lose
from tests.isolated.world import IsolatedWorld

pytestmark = [pytest.mark.slow, pytest.mark.row(85)]

KINDS = (
    ("deployments",),
    ("deployments", "gameservers"),
    ("deployments", "fleets", "gameservers"),
    ("sessions",),
    ("sessions", "active_connections"),
    ("sessions", "active_connections", "deployments", "fleets", "gameservers"),
)


async def begin(isolated: IsolatedWorld, stack: AsyncExitStack) -> Playing:
    matchmaker = await stack.enter_async_context(
        isolated.world.matchmaker(
            TWO_SERVERS, **LIKE_LIFE, profile="isolated", server_auth_seed_file=isolated.nats.auth_seed_file
        )
    )
    playing = Playing(isolated.world, isolated.servers, matchmaker)
    await playing.begin(stack)
    return playing


@pytest.mark.parametrize("lost", KINDS, ids=" and ".join)
async def test_lost_buckets_disturb_nobody(isolated: IsolatedWorld, lost: tuple[str, ...]) -> None:
    async with AsyncExitStack() as stack:
        playing = await begin(isolated, stack)
        await lose(isolated.world, lost)
        await playing.goes_on()


async def test_a_store_that_comes_back_empty_disturbs_nobody(isolated: IsolatedWorld, tmp_path: Path) -> None:
    """The servers must be let in again, although nobody has a record of them."""
    async with AsyncExitStack() as stack:
        playing = await begin(isolated, stack)
        await isolated.nats.server.kill()
        (tmp_path / "isolated" / "jetstream").rename(tmp_path / "lost")
        await isolated.nats.server.start()
        await playing.goes_on()
