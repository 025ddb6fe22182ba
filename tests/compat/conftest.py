"""The previous release, unpacked from its wheel; systems that mix it with the code under test."""

from __future__ import annotations

import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.compat.mixed_releases import MixedSystem, mixed_system
from tests.isolated.world import IsolatedNats
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.settings import NatsSettings


@pytest.fixture(scope="session")
def previous_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its packages, in a folder to put first on PYTHONPATH."""
    (wheel,) = Path(__file__).parent.glob("tipoff-*.whl")
    folder = tmp_path_factory.mktemp("previous")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


@pytest.fixture
async def system(
    nats: Bus, settings: NatsSettings, previous_release: Path, tmp_path: Path
) -> AsyncIterator[MixedSystem]:
    """In the trusted profile: one NATS user for all."""
    async with mixed_system(tmp_path, nats, lambda role: settings, previous_release) as system:
        yield system


@pytest.fixture
async def isolated_system(previous_release: Path, tmp_path: Path) -> AsyncIterator[MixedSystem]:
    """In the isolated profile: a NATS user for each role, game servers in an account of their own."""
    nats = IsolatedNats(tmp_path / "nats", "compat")
    await nats.server.start()
    try:
        async with (
            connect(nats.settings("eyes"), name="eyes") as bus,
            mixed_system(
                tmp_path,
                bus,
                nats.settings,
                previous_release,
                profile="isolated",
                seed_file=nats.auth_seed_file,
            ) as system,
        ):
            yield system
    finally:
        await nats.server.stop()
