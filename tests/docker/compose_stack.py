"""Runs deploy/compose.yaml for a test, with its own project name and ports, and removes everything afterwards."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docker_engine import docker, remove_containers, socket_path
from tests.polling import eventually
from tipoff.operate.status import read_status
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

GAMES = """
[[game]]
name = "arena"
version = "1"
seats = 4
min_ready = 1
max_deployments = 4
empty_ttl = 2

[game.docker]
image = "{image}"
env = {{ ARENA_BOTS = "2" }}
memory = 256

[[game]]
name = "arena"
version = "cold"
seats = 4
max_deployments = 2
empty_ttl = 0

[game.docker]
image = "{image}"
env = {{ ARENA_BOTS = "0" }}
memory = 256
"""


def compose_command() -> list[str]:
    """Compose v2, else docker-compose 1.29; skips or fails the test where there is neither."""
    if subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0:
        return ["docker", "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    if os.environ.get("TIPOFF_TEST_REQUIRE_DOCKER"):
        pytest.fail("neither `docker compose` nor docker-compose is installed")
    pytest.skip("neither `docker compose` nor docker-compose is installed")


class Stack:
    """One project. Players use `url`; `tls` trusts its certificate (profile dev has none)."""

    def __init__(
        self, tree: Path, directory: Path, games: str, tag: str, profile: str, extra: Mapping[str, str]
    ) -> None:
        self.project = "tipofftest" + uuid.uuid4().hex[:6]
        self.profile = profile
        self.directory = directory
        self._compose = [*compose_command(), "-f", str(tree / "deploy/compose.yaml")]
        self._compose += ["--env-file", str(directory / "env")]
        self.secrets = directory / "secrets"
        self.https_port, self.http_port, self.nats_port = free_ports(3)
        first = free_range(24)
        (directory / "games.toml").write_text(games)
        make = [sys.executable, "-m", "tipoff", "secrets", "init", str(self.secrets)]
        make += ["--games", str(directory / "games.toml"), "--namespace", self.project]
        subprocess.run(make, check=True, capture_output=True)
        variables = {
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROFILES": profile,
            "TIPOFF_NAMESPACE": self.project,
            "TIPOFF_TAG": tag,
            "TIPOFF_HTTPS_PORT": str(self.https_port),
            "TIPOFF_HTTP_PORT": str(self.http_port),
            "TIPOFF_DEV_PORT": str(self.http_port),
            "TIPOFF_PORT_RANGE": f"{first}-{first + 23}",
            "TIPOFF_GAMES_FILE": str(directory / "games.toml"),
            "TIPOFF_SECRETS": str(self.secrets),
            "TIPOFF_NATS_PUBLISH": f"127.0.0.1:{self.nats_port}",
            "DOCKER_SOCKET": socket_path(),
            "DOCKER_GID": str(Path(socket_path()).stat().st_gid),
        }
        variables |= {name: value.format(stack=self) for name, value in extra.items()}
        (directory / "env").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        self.tls: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        if self.profile == "dev":
            return f"http://127.0.0.1:{self.http_port}"
        return f"https://localhost:{self.https_port}"

    async def compose(self, *arguments: str, timeout: float = 120.0) -> str:
        """Run `docker compose ...` for this project and return its standard output."""
        process = await asyncio.create_subprocess_exec(
            *self._compose,
            *arguments,
            env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(timeout):
                out, err = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            raise AssertionError(
                f"compose {' '.join(arguments)}: {process.returncode}\n{err.decode()[-4000:]}"
            )
        return out.decode()

    async def up(self) -> None:
        """Wait until players can be served, at most 60 s after the containers were started."""
        await self.compose("up", "-d")
        if self.profile != "dev":
            root = self.directory / "root.crt"
            source = f"{self.container('caddy')}:/data/caddy/pki/authorities/local/root.crt"

            async def copied() -> bool:
                docker("cp", source, str(root), check=False)
                return root.exists()

            await eventually(copied, "Caddy's certificate authority", 30, unready=(Exception,))
            self.tls = ssl.create_default_context(cafile=str(root))
        await eventually(self.ready, "a stack that is ready", 60, unready=(Exception,))

    async def ready(self) -> bool:
        """Whether /readyz says so and a game with `min_ready` has a server."""
        status, _ = await self.get("/readyz")
        if status != 200:
            return False
        if self.profile == "edgegap":
            return True
        return any(server["state"] == "ready" for server in (await self.status())["deployments"])

    async def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Make one HTTP request; status 0 means no answer."""
        import httpx

        try:
            async with httpx.AsyncClient(verify=self.tls or True, timeout=5) as client:
                answer = await client.get(self.url + path, headers=headers)
        except httpx.TransportError:
            return 0, b""
        return answer.status_code, answer.content

    async def post(self, path: str) -> int:
        """POST an empty JSON object and return the status."""
        import httpx

        async with httpx.AsyncClient(verify=self.tls or True, timeout=10) as client:
            return (await client.post(self.url + path, json={})).status_code

    def container(self, service: str) -> str:
        """The id of a service's container."""
        found = docker(
            *("ps", "-aq", "--no-trunc", "--filter", f"label=com.docker.compose.project={self.project}"),
            *("--filter", f"label=com.docker.compose.service={service}"),
        ).split()
        assert len(found) == 1, f"{service}: {found}"
        return found[0]

    def containers(self) -> list[str]:
        """The ids of the project's own containers."""
        mark = f"label=com.docker.compose.project={self.project}"
        return docker("ps", "-aq", "--no-trunc", "--filter", mark).split()

    async def crash(self, service: str) -> None:
        """Kill a container's process by SIGKILL from within, as a crash would, and wait until the engine has restarted
        it. After `docker kill`, an operator's wish, the engine would not restart it."""
        container = self.container(service)
        restarts = int(docker("inspect", "-f", "{{.RestartCount}}", container))
        docker("exec", container, "sh", "-c", "kill -9 -1", check=False)

        async def back() -> bool:
            told = docker("inspect", "-f", "{{.RestartCount}} {{.State.Running}}", container)
            return told == f"{restarts + 1} true"

        await eventually(back, f"{service} started again", 20, unready=(Exception,))

    def game_containers(self, deployment: str = "") -> list[str]:
        """The ids of the game servers' containers, running or not: all, or one deployment's."""
        one = ["--filter", f"label=tipoff.deployment={deployment}"] if deployment else []
        mark = f"label=tipoff.namespace={self.project}"
        return docker("ps", "-aq", "--no-trunc", "--filter", mark, *one).split()

    @asynccontextmanager
    async def nats(self) -> AsyncIterator[Bus]:
        """Connect to NATS as the read-only user `operator`."""
        settings = NatsSettings(
            servers=(f"{'nats' if self.profile == 'dev' else 'tls'}://127.0.0.1:{self.nats_port}",),
            user="operator",
            password=Secret((self.secrets / "nats/operator.password").read_text().strip()),
            ca_file=str(self.secrets / "nats/ca.pem"),
            insecure=self.profile == "dev",
            namespace=self.project,
            inbox_prefix="_INBOX_operator",
        )
        async with connect(settings, name="compose test") as bus:
            yield bus

    async def status(self) -> dict[str, Any]:
        """The document of `tipoff status --json`."""
        async with self.nats() as bus:
            return await read_status(bus)

    async def down(self) -> None:
        await self.compose("down", "-v", timeout=120)

    def logs(self) -> str:
        """The last lines of every container's log, for a test that failed."""
        parts = []
        for container in [*self.containers(), *self.game_containers()]:
            name = docker("inspect", "-f", "{{.Name}} {{.State.Status}}", container, check=False)
            done = subprocess.run(
                ["docker", "logs", "--tail", "15", container], capture_output=True, text=True, check=False
            )
            parts.append(f"--- {name}\n{done.stdout}{done.stderr}")
        return "\n".join(parts)

    def leftovers(self) -> list[str]:
        """The containers, networks and volumes of the project."""
        name = f"name={self.project}"
        return [
            *docker("ps", "-aq", "--filter", name).split(),
            *self.game_containers(),
            *docker("network", "ls", "-q", "--filter", name).split(),
            *docker("volume", "ls", "-q", "--filter", name).split(),
            *docker("volume", "ls", "-q", "--filter", f"label=tipoff.namespace={self.project}").split(),
        ]

    def wipe(self) -> None:
        """Remove what a failed test left."""
        remove_containers(
            f"label=com.docker.compose.project={self.project}"
        )  # so that it starts nothing more
        remove_containers(f"label=tipoff.namespace={self.project}")
        for kind in ("network", "volume"):
            if found := docker(kind, "ls", "-q", "--filter", f"name={self.project}").split():
                docker(kind, "rm", *found, check=False)


@contextmanager
def stack_in(
    tree: Path, directory: Path, tag: str, *, profile: str, games: str = "", **extra: str
) -> Iterator[Stack]:
    """A stack that is not up yet; what is left of it at the end of the block is removed. `extra` has more variables
    of its env file, which may contain `{stack.nats_port}`."""
    stack = Stack(
        tree, directory, games or GAMES.format(image=f"tipoff/gameserver:{tag}"), tag, profile, extra
    )
    try:
        yield stack
    except BaseException:
        print(stack.logs())
        raise
    finally:
        stack.wipe()


def free_ports(count: int) -> list[int]:
    """TCP ports that are free now."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def free_range(length: int) -> int:
    """The first of `length` consecutive ports that are free now, outside the kernel's ephemeral range."""
    for _ in range(50):
        first = random.randrange(20000, 30000, length)
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for port in range(first, first + length):
                    with socket.socket(type=kind) as probe:
                        probe.bind(("0.0.0.0", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free range of ports between 20000 and 30000")
