"""Edgegap is the emulator, in this process and with real game servers; NATS, httpd and the matchmaker are real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.edgegap.edgegap_world import EdgegapWorld
from tipoff_shared.settings import NatsSettings


@pytest.fixture
def edgegap(settings: NatsSettings, tmp_path: Path) -> Callable[..., Any]:
    """`async with edgegap(game, ...) as world`: see `EdgegapWorld.running`."""
    return lambda *games, **options: EdgegapWorld.running(settings, tmp_path, *games, **options)
