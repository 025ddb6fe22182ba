"""The whole system by `tipoff up`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, async_playwright

from tests.arena_servers import arena_toml
from tests.chromium import FLAGS, chromium
from tipoff.testing import RunningUp, running_up

ARENA = "".join(
    (
        arena_toml(seats=8, min_ready=1, max_deployments=8, empty_ttl=1),
        arena_toml(version="v0.0.2", seats=8, min_ready=0, max_deployments=2, empty_ttl=1),
        arena_toml("other game", seats=2, min_ready=0, max_deployments=1, empty_ttl=1),
    )
)


@pytest.fixture(scope="session")
def games_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The arena in two versions, and another game."""
    path = tmp_path_factory.mktemp("games") / "games.toml"
    path.write_text(ARENA)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory, games_file: Path) -> AsyncIterator[RunningUp]:
    """One system for the tests of a file: for those that leave it as they found it."""
    async with running_up(tmp_path_factory.mktemp("state"), games=games_file) as running:
        yield running


@pytest.fixture
async def own_up(tmp_path: Path, games_file: Path) -> AsyncIterator[RunningUp]:
    """A system of this test's own, to break."""
    async with running_up(tmp_path / "state", games=games_file) as running:
        yield running


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[BrowserContext]:
    """Debian's Chromium, headless, with its own profile."""
    path = chromium()
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=path,
            headless=True,
            args=FLAGS,
            viewport={"width": 1280, "height": 800},
        )
        try:
            yield context
        finally:
            await context.close()
