"""Game servers for tests: a stand-alone one, and deployments with a real NATS."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.gameserver.players import Recorder
from tests.isolated.conftest import eyes, isolated_nats
from tipoff_gameserver import Context, GameServer, PrivateKey
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.settings import NatsSettings

__all__ = ["eyes", "isolated_nats"]


@pytest.fixture
def game() -> Recorder:
    return Recorder()


@pytest.fixture
async def alone(game: Recorder) -> AsyncIterator[GameServer]:
    """A running stand-alone server with room for two."""
    async with GameServer(game, stand_alone=True, listen="127.0.0.1:0", tick_rate=100, capacity=2) as server:
        yield server


@pytest.fixture
async def kv(nats: Bus) -> Buckets:
    """All buckets of the test's namespace."""
    return await create_buckets(nats)


@pytest.fixture
def deployment(settings: NatsSettings, kv: Buckets) -> Context:
    """A deployment on loopback, on free ports."""
    return Context(
        deployment_id="arena-1",
        game="arena",
        version="1",
        private_key=PrivateKey.generate(),
        protocol_id=77,
        capacity=4,
        nats=settings,
        drain_grace=2.0,
    )
