"""Says where players reach a server that is ready, as its lease or its orchestrator tells it. Pure.

Our SDK writes a lease. A bevygap server publishes its context once (bevygap/contexts.py), and the orchestrator tells
its ports. Any other server is ready when it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tipoff_orchestrator_client.base import Deployment, Port
from tipoff_shared.messages import (
    Transports,
    UdpAddress,
    WebSocketAddress,
    WebTransportAddress,
)
from tipoff_shared.records import GameserverLease

_WEB_PROTOCOLS = ("ws", "wss", "http", "https")


@dataclass(frozen=True, slots=True)
class ReadyServer:
    """Where players reach a server that is ready. `boot_id` is "" where servers have none (bevygap); `capacity` is 0
    where they do not say; `internal` are the `ip:port` a server compares a token's addresses with; `websocket_port`
    is the port that listener is bound to, 0 where they do not say; `own_key`: whether its netcode key is its own or the
    game's, None where they do not say; `locked`: whether it is closed to new players, `expects`: whether it wants to
    hear of promised seats, None where they do not say."""

    transports: Transports
    capacity: int = 0
    boot_id: str = ""
    internal: tuple[str, ...] = ()
    cert_digest: str = ""
    websocket_port: int = 0
    own_key: bool | None = None
    locked: bool | None = None
    expects: bool | None = None


def from_lease(lease: GameserverLease, own_key: bool | None = None) -> ReadyServer:
    """What a server that uses our SDK says of itself. `own_key`: whose key the lease's fingerprint is."""
    return ReadyServer(
        transports=lease.transports,
        capacity=lease.capacity,
        boot_id=lease.boot_id,
        internal=tuple(lease.internal),
        cert_digest=lease.cert_digest,
        websocket_port=lease.websocket_port,
        own_key=own_key,
        locked=lease.locked,
        expects=lease.expects,
    )


def from_orchestrator(deployment: Deployment, cert_digest: str = "") -> ReadyServer:
    """What the orchestrator says of a server. Ports are known by name (`udp`, `websocket`, `webtransport`, `tcp`),
    else by protocol: the first UDP port is the game's, also for WebTransport when there is a certificate digest; a
    `WS`, `HTTP` or `TCP` port likewise."""
    host, ports = deployment.host, deployment.ports
    udp = _port(ports, "udp", ("udp",))
    webtransport = _port(ports, "webtransport", ()) or (udp if cert_digest else None)
    websocket = _port(ports, "websocket", _WEB_PROTOCOLS)
    tcp = _port(ports, "tcp", ("tcp",))
    secure = websocket is not None and websocket.protocol.lower() in ("wss", "https")
    return ReadyServer(
        transports=Transports(
            udp=None if udp is None else UdpAddress(host, udp.external),
            webtransport=None
            if webtransport is None
            else WebTransportAddress(f"https://{host}:{webtransport.external}", cert_digest),
            websocket=None
            if websocket is None
            else WebSocketAddress(f"{'wss' if secure else 'ws'}://{host}:{websocket.external}/"),
            tcp=None if tcp is None else UdpAddress(host, tcp.external),
        ),
        cert_digest=cert_digest,
    )


def _port(ports: Mapping[str, Port], name: str, protocols: tuple[str, ...]) -> Port | None:
    if name in ports:
        return ports[name]
    known = ("udp", "websocket", "webtransport", "tcp")
    for other, port in ports.items():
        if other not in known and port.protocol.lower() in protocols:
            return port
    return None
