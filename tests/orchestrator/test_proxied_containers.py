"""Which ports of a container are published when browsers reach it through a reverse proxy."""

from __future__ import annotations

from typing import Any

import pytest

from tipoff_launcher.backends.docker.container_config import configuration
from tipoff_launcher.records import Record
from tipoff_orchestrator_client.base import Port, RunState
from tipoff_shared.games import DockerSpec

PORTS = {"udp": Port(30000, 30000, "udp"), "websocket": Port(30001, 30001, "tcp")}


def published(proxy: str, url: str, namespace: str = "") -> set[str]:
    record = Record(
        "arena-1",
        namespace,
        "arena",
        "1",
        RunState.STARTING,
        "docker",
        created_at=0.0,
        ports=PORTS,
        proxy=proxy,
    )
    variables = {"TIPOFF_WEBSOCKET_URL": url} if url else {}
    made: dict[str, Any] = configuration(
        DockerSpec("image"),
        record,
        variables,
        owner_labels={},
        network="games",
        publish_on="0.0.0.0",  # as in the compose stack
        init=True,
        max_log_bytes=1000,
        files=True,
    )
    assert set(made["ExposedPorts"]) == set(made["HostConfig"]["PortBindings"])
    return set(made["HostConfig"]["PortBindings"])


@pytest.mark.parametrize("namespace", ["", "op"])
def test_behind_a_proxy_on_its_network_the_websocket_port_is_not_published(namespace: str) -> None:
    """It speaks no TLS, so only the proxy may reach it. The UDP port is published."""
    name = f"tipoff-{namespace}-arena-1" if namespace else "tipoff-arena-1"
    assert published(f"{name}:30001", "wss://play.example.org/gs/arena-1", namespace) == {"30000/udp"}


@pytest.mark.parametrize(
    ("proxy", "url"),
    [("tipoff-arena-1:30001", ""), ("127.0.0.1:30001", "wss://play.example.org/gs/arena-1")],
)
def test_otherwise_it_is_published(proxy: str, url: str) -> None:
    """Players dial it directly, or the proxy is no container."""
    assert published(proxy, url) == {"30000/udp", "30001/tcp"}
