"""The public NATS image and the launcher's image, with testcontainers: the key-value tests hold for a nats-server in a
container, and a launcher in a container starts servers beside it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

os.environ.setdefault(
    "TESTCONTAINERS_RYUK_DISABLED", "true"
)  # ryuk would need another image and more privileges

import pytest
from testcontainers.core.container import DockerContainer

from tests.docker.compose_stack import free_range
from tests.docker_engine import LABEL, docker, remove_containers, socket_path
from tests.polling import eventually
from tests.shared.test_kv import *  # noqa: F403 # the same tests with this file's `settings`
from tipoff_orchestrator_client.base import DeploySpec, RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.nats.connection import connect
from tipoff_shared.settings import NatsSettings

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(240)]

GAMES = """
[[game]]
name = "arena"
version = "1"
[game.docker]
image = "{image}"
memory = 256
"""


@pytest.fixture(scope="module")
def network() -> Iterator[str]:
    """A separate network, by name. (That of testcontainers closes its client at no call.)"""
    name = f"tipoff-test-{uuid.uuid4().hex[:12]}"
    docker("network", "create", "--label", f"{LABEL}=1", name)
    yield name
    docker("network", "rm", name)


@pytest.fixture(scope="module")
def nats_url(network: str) -> Iterator[str]:
    """nats-server in a container: `host:port` for this process, `nats:4222` on the network."""
    container = DockerContainer("nats:2.12-alpine").with_command("-js").with_exposed_ports(4222)
    container.with_kwargs(labels={LABEL: "1"})
    with container:
        docker("network", "connect", "--alias", "nats", network, container.get_wrapped_container().id)
        yield f"127.0.0.1:{container.get_exposed_port(4222)}"
    container.get_docker_client().client.close()


@pytest.fixture
async def settings(nats_url: str, namespace: str) -> NatsSettings:
    found = NatsSettings(servers=(f"nats://{nats_url}",), insecure=True, namespace=namespace)

    async def answers() -> bool:
        async with connect(found, name="test") as bus:
            await bus.js.account_info()
            return True

    await eventually(answers, "nats-server answers", 20, unready=(Exception,))
    return found


async def test_a_launcher_in_a_container_starts_and_stops_its_neighbours(
    images: Mapping[str, str], network: str, settings: NatsSettings, tmp_path: Path
) -> None:
    """It needs only NATS, the engine's socket and two files."""
    (tmp_path / "games.toml").write_text(GAMES.format(image=images["gameserver"]))
    (tmp_path / "arena.1.key").write_text("5a" * 32)
    os.chmod(tmp_path, 0o755)
    first = free_range(8)
    container = DockerContainer(images["launcher"])
    for name, value in {
        "NATS_HOST": "nats:4222",
        "NATS_INSECURE": "1",
        "TIPOFF_NAMESPACE": settings.namespace,
        "TIPOFF_KEYS_DIR": "/keys",
        "TIPOFF_LAUNCHER_BIND_HOST": "0.0.0.0",
        "TIPOFF_LAUNCHER_PORT_RANGE": f"{first}-{first + 7}",
        "TIPOFF_LAUNCHER_DOCKER_NETWORK": network,
    }.items():
        container.with_env(name, value)
    container.with_volume_mapping(socket_path(), "/var/run/docker.sock", "rw")
    container.with_volume_mapping(str(tmp_path / "games.toml"), "/srv/tipoff/games.toml", "ro")
    container.with_volume_mapping(str(tmp_path), "/keys", "ro")
    group = str(os.stat(socket_path()).st_gid)
    container.with_kwargs(
        network=network,
        labels={LABEL: "1"},
        group_add=[group],
        read_only=True,
        cap_drop=["ALL"],
        init=True,
    )
    mark = f"label=tipoff.namespace={settings.namespace}"
    try:
        with container:
            async with connect(settings, name="test") as bus:
                launcher = LauncherOrchestrator(bus)

                async def answers() -> bool:
                    return await launcher.list() == []

                await eventually(answers, "the launcher answers", 20, unready=(Exception,))
                await launcher.deploy(DeploySpec("arena-a", "arena", "1", 4))

                async def runs() -> bool:
                    found = await launcher.get("arena-a")
                    return found is not None and found.state is RunState.RUNNING

                await eventually(runs, "the server runs", 20, unready=(Exception,))
                assert len(docker("ps", "-q", "--filter", mark).split()) == 1
                await launcher.stop("arena-a")
                assert await launcher.list() == []
                assert docker("ps", "-aq", "--filter", mark) == ""
    finally:
        remove_containers(mark)
        container.get_docker_client().client.close()
