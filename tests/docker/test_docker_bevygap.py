"""An image with bevygap's plugin runs unmodified: two containers of it on one host, on a NATS with TLS and roles."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests.bevygap.games_of_the_page import PORT, games_of_the_page
from tests.bevygap.players import playing
from tests.docker_engine import docker, labels, remove_containers, socket_path
from tests.matchmaker.world import World
from tests.polling import eventually
from tipoff_launcher.compose import run_launcher
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import Games
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionState
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

pytestmark = [pytest.mark.slow, pytest.mark.docker]

STAND_IN = Path(__file__).parent.parent / "bevygap" / "stand_in.py"
IMAGE = "tipoff-test/bevygap-stand-in:test"
DOCKERFILE = """\
FROM {base}
COPY stand_in.py ./
CMD ["python", "stand_in.py", "--port", "{port}"]
"""


@dataclass(frozen=True)
class Stack:
    """A network with a nats-server, and the roles' credentials. `gateway` is this host's address on it."""

    network: str
    gateway: str
    secrets: Path
    port: int

    def settings(self, role: str) -> NatsSettings:
        return NatsSettings(
            servers=(f"tls://127.0.0.1:{self.port}",),
            user=role,
            password=Secret((self.secrets / "nats" / f"{role}.password").read_text().strip()),
            ca_file=str(self.secrets / "nats" / "ca.pem"),
            inbox_prefix=f"_INBOX_{role}",
        )


@pytest.fixture
def image(images: Mapping[str, str], tmp_path: Path) -> Iterator[str]:
    """A game server that always listens on one port, reads its key and NATS from the environment, and exits when
    anything is missing."""
    build = tmp_path / "image"
    build.mkdir()
    shutil.copy(STAND_IN, build)
    (build / "Dockerfile").write_text(DOCKERFILE.format(base=images["gameserver"], port=PORT))
    docker("build", "--quiet", "--tag", IMAGE, *labels(), ".", cwd=build, timeout=120)
    yield IMAGE
    docker("rmi", "--force", IMAGE, check=False)


@pytest.fixture
def stack(source_tree: Path, tmp_path: Path) -> Iterator[Stack]:
    """The production configuration of NATS, with secrets made for this test."""
    name = f"tipoff-test-{secrets.token_hex(4)}"
    where = tmp_path / "secrets"
    made = [sys.executable, "-m", "tipoff", "secrets", "init", str(where)]
    subprocess.run(made, check=True, capture_output=True, timeout=60, cwd=tmp_path)
    docker("network", "create", *labels(), name)
    gateway = docker("network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", name)
    mounts = [(source_tree / "deploy" / "nats" / "nats.conf", "nats.conf")]
    mounts += [(where / "nats" / file, file) for file in ("users.conf", "server.pem", "server.key")]
    try:
        docker(
            *("run", "--detach", "--name", name, "--network", name, "--network-alias", "nats", *labels()),
            *("--network-alias", "nats-monitor"),
            *("--publish", "127.0.0.1::4222", "--tmpfs", "/data"),
            *(part for host, file in mounts for part in ("--volume", f"{host}:/etc/nats/{file}:ro")),
            *("nats:2.12", "-c", "/etc/nats/nats.conf"),
        )
        port = int(docker("port", name, "4222/tcp").splitlines()[0].rpartition(":")[2])
        yield Stack(name, gateway, where, port)
    finally:
        docker("rm", "--force", "--volumes", name, check=False)
        docker("network", "rm", name, check=False)


@pytest.fixture
async def roles(stack: Stack) -> AsyncIterator[tuple[World, World]]:
    """One world with the matchmaker's role and one with httpd's, when NATS is up."""
    async with AsyncExitStack() as to_close:
        bus = await eventually(
            lambda: to_close.enter_async_context(connect(stack.settings("matchmaker"), name="matchmaker")),
            "NATS answers",
            20,
            unready=(Unavailable,),
        )
        world = await to_close.enter_async_context(World(bus, stack.settings("matchmaker")))
        asking = await to_close.enter_async_context(connect(stack.settings("httpd"), name="httpd"))
        yield world, World(asking, stack.settings("httpd"))


@asynccontextmanager
async def launcher_on_the_host(
    stack: Stack, images: Mapping[str, str], games: Games, tmp_path: Path
) -> AsyncIterator[None]:
    """A launcher that its servers reach at their network's gateway."""
    settings = Settings(
        backend="docker",
        state_dir=tmp_path / "launcher",
        docker_network=stack.network,
        context_listen=f"{stack.gateway}:0",
        docker_nats_host="nats:4222",
        server_nats_user="gameserver",
        server_nats_password_file=str(stack.secrets / "nats" / "gameserver.password"),
        port_range="31700-31749",
        stop_grace=1,
        stop_servers_on_exit=True,
    )
    async with run_launcher(settings, games, stack.settings("launcher")):
        yield


@asynccontextmanager
async def launcher_in_a_container(
    stack: Stack, images: Mapping[str, str], games: Games, tmp_path: Path
) -> AsyncIterator[None]:
    """A launcher that its servers reach by its container's name, as in deploy/compose.yaml."""
    name = f"{stack.network}-launcher"
    variables = {
        "NATS_HOST": "nats:4222",
        "NATS_CA": "/run/tipoff/ca.pem",
        "NATS_USER": "launcher",
        "NATS_PASSWORD_FILE": "/run/tipoff/launcher.password",
        "TIPOFF_LAUNCHER_DOCKER_NETWORK": stack.network,
        "TIPOFF_LAUNCHER_SERVER_NATS_USER": "gameserver",
        "TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE": "/run/tipoff/gameserver.password",
        "TIPOFF_LAUNCHER_CONTEXT_LISTEN": "0.0.0.0:8070",
        "TIPOFF_LAUNCHER_CONTEXT_URL": "http://launcher:8070",
        "TIPOFF_LAUNCHER_BIND_HOST": "0.0.0.0",
        "TIPOFF_LAUNCHER_PORT_RANGE": "31750-31799",
        "TIPOFF_LAUNCHER_STOP_GRACE": "1",
        "TIPOFF_LAUNCHER_STOP_SERVERS_ON_EXIT": "true",
    }
    files = {games.base / file: f"/srv/tipoff/{file}" for file in ("games.toml", "spaceships.key")}
    for file in ("ca.pem", "launcher.password", "gameserver.password"):
        files[stack.secrets / "nats" / file] = f"/run/tipoff/{file}"
    files[Path(socket_path())] = "/var/run/docker.sock"
    docker(
        *("run", "--detach", "--name", name, "--network", stack.network, "--network-alias", "launcher"),
        *("--group-add", str(os.stat(socket_path()).st_gid), *labels()),
        *(part for host, inside in files.items() for part in ("--volume", f"{host}:{inside}")),
        *(part for variable, value in variables.items() for part in ("--env", f"{variable}={value}")),
        images["launcher"],
    )
    try:
        yield
        await asyncio.to_thread(docker, "stop", "--time", "20", name)
    except BaseException:
        print(docker("logs", name, check=False))
        raise
    finally:
        docker("rm", "--force", "--volumes", name, check=False)
        remove_containers(f"network={stack.network}", "label=tipoff.launcher")


@pytest.mark.parametrize("launcher", [launcher_on_the_host, launcher_in_a_container])
async def test_two_containers_with_bevygaps_plugin_play_on_one_host(
    launcher: Callable[..., AbstractAsyncContextManager[None]],
    stack: Stack,
    images: Mapping[str, str],
    image: str,
    roles: tuple[World, World],
    source_tree: Path,
    tmp_path: Path,
) -> None:
    """With the games.toml of docs/from-bevygap.md. Both listen on 6420 inside; each player gets the port and digest of
    the server that accepts the token. Then one asks to be stopped."""
    world, players = roles
    (tmp_path / "games").mkdir()
    games = games_of_the_page(source_tree, tmp_path / "games", image=image)
    (written,) = games.all()
    # The tests' world knows the launcher by another name, and one player each is enough.
    game = msgspec.structs.replace(written, orchestrator="fake", seats=1)
    orchestrator = LauncherOrchestrator(world.bus)
    async with launcher(stack, images, games, tmp_path):
        await world.eventually(lambda: answers(orchestrator), "the launcher answers", 20)
        async with world.matchmaker(game, orchestrator=orchestrator):
            await two_play(world, players, game.name)
    assert not docker(
        "ps", "--all", "--quiet", "--filter", f"network={stack.network}", "--filter", "label=tipoff.launcher"
    )


async def answers(orchestrator: LauncherOrchestrator) -> bool:
    try:
        await orchestrator.list()
    except OrchestratorError:
        return False
    return True


async def two_play(world: World, players: World, game: str) -> None:
    first = await players.play(game)
    second = await players.play(game)
    assert first.ip == second.ip == "127.0.0.1"
    assert first.port != second.port
    assert first.cert_digest != second.cert_digest
    async with playing(first) as one, playing(second) as other:
        for player, ready in ((one, first), (other, second)):
            who = (await player.ask(b"who")).decode()
            assert who == f"{ready.deployment_id} {ready.cert_digest}"
            await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await one.ask(b"end")
        session = await world.session_becomes(first.session_id, SessionState.GONE)
        assert "stopped" in session.reason
        assert (await other.ask(b"who")).decode().startswith(second.deployment_id)
    await world.session_becomes(second.session_id, SessionState.GONE)
