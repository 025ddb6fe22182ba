"""What makes a deployment ready, told in three ways: its lease, its context message, or its orchestrator. Pure.

Our SDK writes a lease. A bevygap server publishes its context once; its ports are the orchestrator's to tell. Anything
else is ready when it runs.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tipoff_orchestrator_client.base import Deployment, Port
from tipoff_shared.errors import Malformed
from tipoff_shared.messages import (
    Transports,
    UdpAddress,
    WebSocketAddress,
    WebTransportAddress,
)
from tipoff_shared.records import GameserverLease

_MAX_CONTEXT = 64 * 1024
_WEB_PROTOCOLS = ("ws", "wss", "http", "https")


@dataclass(frozen=True, slots=True)
class Arrival:
    """Where players reach a server that is ready. `boot_id` is "" where servers have none (bevygap); `capacity` 0
    where they do not say; `internal` are the `ip:port` a server compares a token's addresses with; `websocket_port`
    is the port that listener is bound to, 0 where they do not say."""

    transports: Transports
    capacity: int = 0
    boot_id: str = ""
    internal: tuple[str, ...] = ()
    cert_digest: str = ""
    websocket_port: int = 0


@dataclass(frozen=True, slots=True)
class Context:
    """What a `gameserver.contexts` message says. `ids`: what may be the deployment's id, likeliest first."""

    ids: tuple[str, ...]
    public_ip: str


def from_lease(lease: GameserverLease) -> Arrival:
    return Arrival(
        transports=lease.transports,
        capacity=lease.capacity,
        boot_id=lease.boot_id,
        internal=tuple(lease.internal),
        cert_digest=lease.cert_digest,
        websocket_port=lease.websocket_port,
    )


def from_orchestrator(deployment: Deployment, cert_digest: str = "") -> Arrival:
    """Ports are known by name (`udp`, `websocket`, `webtransport`, `tcp`), else by protocol: the first UDP port is
    the game's, also for WebTransport when there is a certificate digest; a `WS`, `HTTP` or `TCP` port likewise."""
    host, ports = deployment.host, deployment.ports
    udp = _port(ports, "udp", ("udp",))
    webtransport = _port(ports, "webtransport", ()) or (udp if cert_digest else None)
    websocket = _port(ports, "websocket", _WEB_PROTOCOLS)
    tcp = _port(ports, "tcp", ("tcp",))
    secure = websocket is not None and websocket.protocol.lower() in ("wss", "https")
    return Arrival(
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


def decode_context(data: bytes) -> Context:
    """Raises `Malformed` for anything but a JSON object that names a deployment."""
    if len(data) > _MAX_CONTEXT:
        raise Malformed(f"a context is at most {_MAX_CONTEXT} bytes")
    try:
        context: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a deployment's context: {exc}") from exc
    ids = tuple(
        value
        for name in ("deployment_id", "request_id")
        if isinstance(value := context.get(name), str) and 0 < len(value) <= 100
    )
    if not ids:
        raise Malformed("a context names no deployment: neither deployment_id nor request_id")
    return Context(ids, _address(context.get("public_ip")))


def _address(value: object) -> str:
    """It becomes a key to look for, and `*` would be everybody's: "" for anything but an address."""
    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        return ""
    return str(value)
