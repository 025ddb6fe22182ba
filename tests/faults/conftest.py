"""Faults are tested with what the other areas' tests stand on: their worlds and players can be imported here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.matchmaker_processes import Processes, matchmaker_processes
from tests.matchmaker.world import World
from tipoff_shared.nats.connection import connect
from tipoff_shared.settings import NatsSettings


@pytest.fixture
async def world(settings: NatsSettings) -> AsyncIterator[World]:
    """NATS, the fake orchestrator and its game servers; no matchmaker yet."""
    async with connect(settings, name="world") as bus, World(bus, settings) as world:
        yield world


@pytest.fixture
async def processes(world: World, tmp_path: Path) -> AsyncIterator[Processes]:
    """Matchmakers of the world that are processes of their own; none runs yet."""
    async with matchmaker_processes(world, tmp_path) as processes:
        yield processes
