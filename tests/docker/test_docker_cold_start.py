"""Cold start: a container is started for the player who asks."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

import tipoff
from tests.docker_engine import docker
from tests.polling import eventually
from tipoff.testing import running_up

pytestmark = [pytest.mark.slow, pytest.mark.docker]

GAMES = """
[[game]]
name = "arena"
version = "1"
seats = 8
min_ready = 0
max_deployments = 2
empty_ttl = 0.5

[game.docker]
image = "{image}"
env = {{ ARENA_BOTS = "0" }}
"""


async def test_a_player_is_connected_to_a_container_within_three_seconds(
    images: Mapping[str, str], tmp_path: Path, namespace: str
) -> None:
    """The median of three players, with no server running and the image present. Nothing is left afterwards."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES.format(image=images["gameserver"]))
    environ = {"TIPOFF_LAUNCHER_BACKEND": "docker", "TIPOFF_LAUNCHER_DOCKER_NETWORK": "host"}

    def containers() -> str:
        return docker("ps", "-aq", "--filter", f"label=tipoff.namespace={namespace}")

    async def nothing_runs() -> bool:
        return not await asyncio.to_thread(containers)

    took: list[float] = []
    arguments = ("--namespace", namespace)
    async with running_up(tmp_path / "state", games=games, environ=environ, arguments=arguments) as up:
        for _ in range(3):
            began = time.perf_counter()
            async with tipoff.connect(up.url, game="arena", version="1"):
                took.append(time.perf_counter() - began)
            await eventually(nothing_runs, "its container is removed", 20)
    print(f"cold starts: {', '.join(f'{seconds:.2f} s' for seconds in took)}")
    assert statistics.median(took) < 3
    assert not containers()
