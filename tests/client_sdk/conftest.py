"""A real stand-alone game server for the client SDK's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.client_sdk.stubs import Echo
from tipoff_gameserver import GameServer


@pytest.fixture
async def echo() -> AsyncIterator[GameServer]:
    """A real game server on loopback; `echo.game` is the Echo."""
    async with GameServer(Echo(), stand_alone=True, listen="127.0.0.1:0", capacity=4) as server:
        yield server
