"""Faults are tested with what the other areas' tests stand on: their worlds and players can be imported here."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent.parent
for _area in ("matchmaker", "gameserver", "orchestrator", "e2e", "faults"):
    if str(_TESTS / _area) not in sys.path:
        sys.path.insert(0, str(_TESTS / _area))

# Found by the paths above.
from matchmaker_processes import Processes, matchmaker_processes  # noqa: E402
from matchmaker_world import World  # noqa: E402

from tipoff_shared.nats_connection import connect  # noqa: E402
from tipoff_shared.settings import NatsSettings  # noqa: E402


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
