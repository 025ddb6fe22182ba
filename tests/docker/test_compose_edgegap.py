"""Profile edgegap: no launcher and no engine's socket; servers elsewhere reach NATS over TLS."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import tipoff
from tests.docker.compose_stack import Stack, free_ports, stack_in
from tests.docker_engine import docker
from tests.polling import eventually
from tipoff_shared.hooks import HookKey

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(240)]

GAMES = """
[[game]]
name = "arena"
version = "1"
orchestrator = "edgegap"
seats = 4
max_deployments = 2
empty_ttl = 1

[game.edgegap]
application = "arena"
version = "1"

[game.process]
command = ["python", "-m", "tipoff_arena.server"]
env = { ARENA_BOTS = "0" }
"""


@asynccontextmanager
async def emulator(stack: Stack, address: str) -> AsyncIterator[None]:
    """Edgegap's emulator on `address`, which the containers reach; its servers are processes of this host."""
    log = stack.directory / "emulator.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tipoff", "edgegap-emulator", "--listen", address),
            *("--games", str(stack.directory / "games.toml"), "--start-delay", "0.2"),
            env=os.environ
            | {
                "TIPOFF_EDGEGAP_TOKEN": "any-token",
                "TIPOFF_KEYS_DIR": str(stack.secrets / "netcode"),
            },
            stdout=out,
            stderr=out,
        )
    try:
        yield
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)
        print(log.read_text()[-3000:])


async def test_players_get_in_without_a_launcher(
    source_tree: Path, images: Mapping[str, str], tmp_path: Path
) -> None:
    """The matchmaker deploys at Edgegap (the emulator) and stops the deployment; webhooks pass Caddy only with the
    right token. (The emulator's own fail here: like Edgegap it trusts only public certificates.)"""
    subnet = ipaddress.ip_network(
        docker("network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Subnet}}"), strict=False
    )
    address = f"{subnet[1]}:{free_ports(1)[0]}"  # this host's address for every container
    variables = {
        "TIPOFF_EDGEGAP_URL": f"http://{address}",
        "TIPOFF_EDGEGAP_NATS_HOST": "localhost:{stack.nats_port}",
        "TIPOFF_EDGEGAP_HOOK_URL": "https://localhost:{stack.https_port}",
    }
    with stack_in(source_tree, tmp_path, "test", profile="edgegap", games=GAMES, **variables) as stack:
        (stack.secrets / "edgegap/token").write_text("any-token\n")
        await stack.up()
        services = docker(
            *("ps", "--filter", f"label=com.docker.compose.project={stack.project}"),
            *("--format", '{{.Label "com.docker.compose.service"}}'),
        ).split()
        assert sorted(services) == ["caddy", "httpd-a", "httpd-b", "matchmaker-a", "matchmaker-b", "nats"]
        key = HookKey((stack.secrets / "edgegap/hook.key").read_text().strip(), stack.project)
        assert await stack.post(f"/hook/{key.path_name('someone')}") == 204
        assert await stack.post("/hook/someone.00000000000000000000000000000000") == 404
        async with emulator(stack, address):
            async with tipoff.connect(
                stack.url, game="arena", version="1", transports=["udp"], ssl=stack.tls
            ) as player:
                await asyncio.wait_for(player.receive(), 10)

            async def given_back() -> bool:
                status = await stack.status()
                return not status["sessions"] and not status["deployments"]

            await eventually(given_back, "session and server given back", 40, unready=(Exception,))
        await stack.down()
        assert stack.leftovers() == []
