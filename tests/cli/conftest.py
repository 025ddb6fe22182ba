"""A small world for commands: real NATS, a matchmaker, a fake orchestrator."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "matchmaker"))  # matchmaker_world

from matchmaker_world import World

from tipoff_shared.nats_connection import connect
from tipoff_shared.settings import NatsSettings


@pytest.fixture
async def world(settings: NatsSettings) -> AsyncIterator[World]:
    """NATS, an orchestrator and gameservers; matchmakers are started by the test."""
    async with connect(settings, name="world") as bus, World(bus, settings) as world:
        yield world
