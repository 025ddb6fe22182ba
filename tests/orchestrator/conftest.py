"""Launchers, real and started for each test: see `launcher_world.LauncherWorld`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from tests.orchestrator.launcher_world import LauncherWorld, Spec, numbered_specs
from tests.polling import eventually
from tipoff_launcher.service import Launcher
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.games import Games
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.settings import NatsSettings


@pytest.fixture
def client(nats: Bus) -> LauncherOrchestrator:
    """A matchmaker's client of the launcher."""
    return LauncherOrchestrator(nats)


@pytest.fixture
def launchers(
    tmp_path: Path, settings: NatsSettings, client: LauncherOrchestrator
) -> Iterator[LauncherWorld]:
    world = LauncherWorld(tmp_path, settings, client)
    yield world
    world.close()


@pytest.fixture
async def launcher(launchers: LauncherWorld) -> AsyncIterator[Launcher]:
    """A launcher with the back end `process`, which knows `games`."""
    async with launchers.start() as launcher:
        yield launcher


@pytest.fixture
def games(launchers: LauncherWorld) -> Games:
    """The scripts as games with the back end `process`."""
    return launchers.games


@pytest.fixture
async def kv(nats: Bus) -> Buckets:
    return await create_buckets(nats)


@pytest.fixture
def spec() -> Spec:
    return numbered_specs()


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., Awaitable[None]]:
    return eventually
