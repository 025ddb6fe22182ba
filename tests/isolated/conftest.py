"""The isolated profile with a real nats-server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.real_servers import RealServers
from tests.isolated.world import IsolatedNats, IsolatedWorld
from tests.matchmaker.world import World
from tipoff_shared.nats.connection import Bus, connect


@pytest.fixture
async def isolated_nats(tmp_path: Path) -> AsyncIterator[IsolatedNats]:
    own = IsolatedNats(tmp_path / "isolated", "iso")
    await own.server.start()
    try:
        yield own
    finally:
        await own.server.stop()


@pytest.fixture
async def eyes(isolated_nats: IsolatedNats) -> AsyncIterator[Bus]:
    """Sees and may do everything in the matchmaker's account."""
    async with connect(isolated_nats.settings("eyes"), name="eyes") as bus:
        yield bus


@pytest.fixture
async def isolated(isolated_nats: IsolatedNats, eyes: Bus) -> AsyncIterator[IsolatedWorld]:
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(World(eyes, isolated_nats.settings("matchmaker")))
        servers = RealServers(world, isolated_nats.settings("gameserver"), lease_ttl=1)
        stack.push_async_callback(servers.close)
        yield IsolatedWorld(world, servers, isolated_nats)
