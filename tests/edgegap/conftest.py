"""Edgegap is the emulator, in this process and with real game servers; NATS, httpd and the matchmaker are real."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_TESTS = Path(__file__).parent.parent
for _area in ("matchmaker", "gameserver", "edgegap"):
    if str(_TESTS / _area) not in sys.path:
        sys.path.insert(0, str(_TESTS / _area))

from edgegap_world import EdgegapWorld  # noqa: E402 # its folder is on the path from here on

from tipoff_shared.settings import NatsSettings  # noqa: E402


@pytest.fixture
def edgegap(settings: NatsSettings, tmp_path: Path) -> Callable[..., Any]:
    """`async with edgegap(game, ...) as world`: see `EdgegapWorld.running`."""
    return lambda *games, **options: EdgegapWorld.running(settings, tmp_path, *games, **options)
