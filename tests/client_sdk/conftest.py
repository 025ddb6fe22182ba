"""What the client SDK's tests share: a real gameserver that stands alone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tipoff_gameserver import GameServer


@pytest.fixture
async def echo() -> AsyncIterator[GameServer]:
    """A real gameserver on loopback; `echo.game` is the Echo."""
    from tests.client_sdk.stubs import Echo  # found by the line above

    async with GameServer(Echo(), stand_alone=True, listen="127.0.0.1:0", capacity=4) as server:
        yield server
