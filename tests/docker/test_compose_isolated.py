"""The compose stack in the isolated profile: game servers are containers that reach no record in NATS."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

import tipoff
from tests.docker.compose_stack import Stack, stack_in
from tests.docker_engine import docker
from tests.polling import eventually

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(240)]


async def test_players_play_where_game_servers_are_not_trusted(
    source_tree: Path, images: Mapping[str, str], tmp_path: Path
) -> None:
    """Players play over UDP and wss; everything is released when they leave and when their server is killed."""
    with stack_in(source_tree, tmp_path, "test", profile="local") as stack:
        with (tmp_path / "env").open("a") as env:
            env.write("TIPOFF_PROFILE=isolated\nTIPOFF_NATS_USERS=isolated.conf\n")
        await stack.up()
        for transport in ("udp", "websocket"):
            async with tipoff.connect(
                stack.url, game="arena", version="1", transports=[transport], ssl=stack.tls
            ) as player:
                await player.receive()
                await eventually(lambda: _active(stack, 1), "the session is active", 10, unready=(Exception,))
            await eventually(lambda: _active(stack, 0), "it is over", 10, unready=(Exception,))
        container = stack.game_containers()[0]
        variables = dict(
            item.split("=", 1) for item in json.loads(docker("inspect", container))[0]["Config"]["Env"]
        )
        assert variables["TIPOFF_PROFILE"] == "isolated"
        assert variables["NATS_USER"].startswith("gs-arena-")
        async with tipoff.connect(stack.url, game="arena", version="1", ssl=stack.tls) as player:
            await player.receive()
            (container,) = stack.game_containers(player.deployment_id)
            docker("kill", container)
            await eventually(lambda: _active(stack, 0), "its session is over", 20, unready=(Exception,))
        await stack.down()
        assert stack.leftovers() == []


async def _active(stack: Stack, count: int) -> bool:
    sessions = (await stack.status())["sessions"]
    return sum(session["state"] == "active" for session in sessions) == count
