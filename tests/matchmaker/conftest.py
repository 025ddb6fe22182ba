"""A small world for matchmakers: real NATS, a fake orchestrator, and stand-ins for gameservers and players."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.matchmaker.world import World
from tipoff_shared.nats.connection import connect
from tipoff_shared.settings import NatsSettings


@pytest.fixture
async def world(settings: NatsSettings) -> AsyncIterator[World]:
    """NATS, an orchestrator and gameservers; matchmakers are started by the test."""
    async with connect(settings, name="world") as bus, World(bus, settings) as world:
        yield world
