"""With live-restore, players play on while the engine is restarted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

import tipoff
from tests.orchestrator.own_engine import a_bridge, own_engine
from tests.polling import eventually
from tipoff.testing import RunningUp, running_up

pytestmark = [pytest.mark.slow, pytest.mark.docker]

GAMES = """
[[game]]
name = "arena"
version = "1"
seats = 8
max_deployments = 2
empty_ttl = 1

[game.docker]
image = "{image}"
env = {{ ARENA_BOTS = "0" }}
"""


async def sessions(up: RunningUp) -> list[tuple[str, str]]:
    return [(each["id"], each["state"]) for each in (await up.status())["sessions"]]


async def test_who_plays_while_the_engine_is_restarted_plays_on(
    images: Mapping[str, str], tmp_path: Path, namespace: str
) -> None:
    """Packets keep arriving; session and server are the same afterwards, a new player joins them, and at the end
    everything is released."""
    image = images["gameserver"]
    games = tmp_path / "games.toml"
    games.write_text(GAMES.format(image=image))
    with a_bridge() as bridge, own_engine("--live-restore", bridge=bridge) as engine:
        await asyncio.to_thread(engine.load, image)
        environ = {
            "TIPOFF_LAUNCHER_BACKEND": "docker",
            "TIPOFF_LAUNCHER_DOCKER_HOST": engine.host,
            "TIPOFF_LAUNCHER_DOCKER_NETWORK": "host",
        }
        up_arguments = ("--namespace", namespace)
        async with running_up(tmp_path / "state", games=games, environ=environ, arguments=up_arguments) as up:
            async with tipoff.connect(up.url, game="arena", version="1") as player:
                packets = 0

                async def listen() -> None:
                    nonlocal packets
                    async for _ in player:
                        packets += 1

                async def more_packets() -> None:
                    before = packets
                    await eventually(lambda: packets >= before + 10, "ten more packets", 10)

                listening = asyncio.create_task(listen())
                await more_packets()
                before = await sessions(up)
                await asyncio.to_thread(engine.stop)
                await more_packets()
                await asyncio.to_thread(engine.start)
                await more_packets()
                async with tipoff.connect(up.url, game="arena", version="1") as another:
                    assert another.deployment_id == player.deployment_id
                    assert set(before) < set(await sessions(up))
                listening.cancel()
                await asyncio.wait([listening])

            async def given_back() -> bool:
                return not engine.docker("ps", "-aq").stdout

            await eventually(given_back, "every container removed", 30)
