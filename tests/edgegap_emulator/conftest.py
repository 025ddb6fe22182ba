"""Emulated accounts for the tests of this directory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.edgegap_emulator.emulator_account import GAMES, Account, Accounts, at_once, load
from tipoff_edgegap_emulator import Options, running_emulator


@pytest.fixture
def account(tmp_path: Path) -> Accounts:
    """`async with account(options) as it:`: an emulated account of one's own."""

    @asynccontextmanager
    async def opened(options: Options | None = None, *, text: str = GAMES) -> AsyncIterator[Account]:
        games = load(tmp_path, text)
        async with (
            running_emulator(games, options or at_once()) as emulator,
            httpx.AsyncClient(
                base_url=emulator.url,
                headers={"authorization": f"token {emulator.token}"},
                timeout=10,
                trust_env=False,
                verify=False,  # plain HTTP: reading the system's authorities takes longer than a test
            ) as client,
        ):
            yield Account(emulator, client, games)

    return opened
