"""Three nats-servers with JetStream on loopback, as one cluster: what a fleet runs, small enough for a test.

async with nats_cluster(directory) as cluster:
    async with connect(cluster.settings("mine"), name="me") as bus:
        await create_buckets(bus)  # three replicas each
        await (await cluster.leader_of(bus, "KV_sessions")).kill()
"""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import nats.errors
from nats.js import api

from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings

NODES = 3


class NatsCluster:
    """`nodes`: name -> nats-server. Each may be killed, and started again with its data and its address."""

    def __init__(self, nodes: dict[str, EmbeddedNats]) -> None:
        self.nodes = nodes

    def settings(self, namespace: str = "", *, bevygap_replicas: int = NODES) -> NatsSettings:
        """A client may use any node, and goes to another when its own is gone."""
        one, *others = (node.settings(namespace) for node in self.nodes.values())
        return replace(
            one,
            servers=(*one.servers, *(server for other in others for server in other.servers)),
            replicas=NODES,
            bevygap_replicas=bevygap_replicas,
        )

    async def leader_of(self, bus: Bus, stream: str) -> EmbeddedNats:
        """The node that leads this stream's replicas just now."""
        info = await bus.js.stream_info(stream)
        if info.cluster is None or not info.cluster.leader:
            raise Unavailable(f"{stream} has no leader just now", retry_after=1)
        return self.nodes[info.cluster.leader]

    async def ready(self, timeout: float = 15.0) -> None:
        """The nodes have agreed on a leader, so that streams can be made; raises `Unavailable`."""
        reason = "no answer"
        try:
            async with (
                asyncio.timeout(timeout),
                connect(self.settings(), name="cluster", timeout=timeout) as bus,
            ):
                while True:
                    try:
                        await bus.js.account_info()
                        return
                    except nats.errors.Error as exc:
                        reason = str(exc) or type(exc).__name__
                    await asyncio.sleep(0.05)  # an election: nobody tells when it is over
        except TimeoutError:
            raise Unavailable(f"the NATS cluster is not ready after {timeout:g} s: {reason}") from None

    async def caught_up(self, bus: Bus, timeout: float = 30.0) -> None:
        """Every stream has a leader and replicas that are not behind, so that another node may be lost; raises
        `Unavailable`."""
        behind = "no answer"
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        infos = await bus.js.streams_info()
                    except nats.errors.Error as exc:
                        behind = str(exc) or type(exc).__name__
                    else:
                        waiting = [info.config.name for info in infos if not _is_whole(info)]
                        if not waiting:
                            return
                        behind = ", ".join(map(str, waiting))
                    await asyncio.sleep(0.1)  # nobody tells when replicas have caught up
        except TimeoutError:
            raise Unavailable(f"not caught up after {timeout:g} s: {behind}") from None


def _is_whole(info: api.StreamInfo) -> bool:
    cluster = info.cluster
    replicas = (cluster.replicas or []) if cluster is not None else []
    return cluster is not None and bool(cluster.leader) and all(r.current and not r.offline for r in replicas)


@asynccontextmanager
async def nats_cluster(directory: Path) -> AsyncIterator[NatsCluster]:
    """A cluster that keeps its data in `directory`, stopped at the end. Raises `Unavailable` when it does not start."""
    password = Secret(secrets.token_urlsafe(24))
    nodes: dict[str, EmbeddedNats] = {}
    async with AsyncExitStack() as stack:
        for name, more in cluster_blocks(NODES).items():
            nodes[name] = EmbeddedNats(directory / name, password=password, more=more)
            stack.push_async_callback(nodes[name].stop)
        await asyncio.gather(*(node.start() for node in nodes.values()))
        cluster = NatsCluster(nodes)
        await cluster.ready()
        yield cluster


def cluster_blocks(count: int) -> dict[str, str]:
    """Name of each node -> what its configuration says of the cluster."""
    route_password = secrets.token_urlsafe(24)
    ports = _free_ports(count)
    routes = [f"nats-route://route:{route_password}@127.0.0.1:{port}" for port in ports]
    return {
        f"n{number}": (
            f"server_name: n{number}\n"
            "cluster {\n"
            "  name: tipoff\n"
            f"  listen: 127.0.0.1:{port}\n"
            f"  routes: {json.dumps(routes)}\n"
            "  authorization {\n"
            f"    user: route\n    password: {json.dumps(route_password)}\n"
            "  }\n"
            "}\n"
        )
        for number, port in enumerate(ports, 1)
    }


def _free_ports(count: int) -> list[int]:
    """Ports for the nodes' own links: each must know those of the others before any runs."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
