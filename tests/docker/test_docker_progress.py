"""A player who waits for an image gets progress texts, and then a server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.docker_engine import docker
from tests.orchestrator.own_engine import SlowRegistry
from tipoff.testing import running_up

pytestmark = [pytest.mark.slow, pytest.mark.docker]

GAMES = """
[[game]]
name = "sleeper"
version = "1"
ready = "running"
max_deployments = 1
start_timeout = 2
empty_ttl = 1

[game.docker]
image = "{image}"
command = ["sh", "-c", "exec sleep 300"]
"""


async def test_a_player_who_waits_for_an_image_hears_how_far_it_is(tmp_path: Path, namespace: str) -> None:
    """The fetch takes longer than `start_timeout`; while it makes progress, the start continues."""
    async with SlowRegistry(padding=3_000_000, pause=0.13).serving() as registry:
        games = tmp_path / "games.toml"
        games.write_text(GAMES.format(image=registry.image))
        environ = {
            "TIPOFF_LAUNCHER_BACKEND": "docker",
            "TIPOFF_LAUNCHER_DOCKER_PULL_AT_START": "false",
            "TIPOFF_LAUNCHER_DOCKER_INIT": "false",
        }
        said: list[str] = []
        ready = False
        try:
            async with (
                running_up(
                    tmp_path / "state", games=games, environ=environ, arguments=("--namespace", namespace)
                ) as up,
                connect(up.url.replace("http", "ws", 1) + "/matchmaker/ws") as socket,
            ):
                await socket.send(json.dumps({"game": "sleeper", "version": "1"}))
                async with asyncio.timeout(30):
                    async for text in socket:
                        message = json.loads(text)
                        if isinstance(message, dict):
                            ready |= "SessionReady" in message
                            said.append(str(message.get("ProgressReport", message)))
        finally:
            docker("rmi", "-f", registry.image, check=False)
    assert ready, said
    assert len([text for text in said if text.startswith("Fetching the game server's image")]) > 2
    assert not any("did not start" in text for text in said)
    assert not docker("ps", "-aq", "--filter", f"label=tipoff.namespace={namespace}")
