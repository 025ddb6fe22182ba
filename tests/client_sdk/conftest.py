"""What the client SDK's tests share: a real gameserver that stands alone."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tipoff_gameserver import GameServer

sys.path.insert(0, str(Path(__file__).parent))  # client_sdk_support


@pytest.fixture
async def echo() -> AsyncIterator[GameServer]:
    """A real gameserver on loopback; `echo.game` is the Echo."""
    from client_sdk_support import Echo  # found by the line above

    async with GameServer(Echo(), stand_alone=True, listen="127.0.0.1:0", capacity=4) as server:
        yield server
