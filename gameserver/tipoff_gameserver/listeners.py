"""The listeners of one server, opened as its context says, and how players reach them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from tipoff_gameserver.context import Context
from tipoff_gameserver.players.admission import Refusal
from tipoff_gameserver.players.roster import Roster
from tipoff_gameserver.stand_alone import Matchmaker
from tipoff_gameserver.transports import Host, Transport
from tipoff_gameserver.transports.udp import UdpTransport
from tipoff_gameserver.transports.websocket import WebSocketTransport, server_tls
from tipoff_shared.errors import ConfigError
from tipoff_shared.messages import Transports, UdpAddress, WebSocketAddress
from tipoff_shared.netcode import Address, Dialect, InvalidAddress
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)


class Listeners:
    """UDP and WebSocket side by side. `addresses` are those a token must name one of; None: not compared."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.udp: UdpTransport | None = None
        self.websocket: WebSocketTransport | None = None

    async def open(
        self, host: Host, roster: Roster, boot_id: str, *, tasks: Tasks, udp: bool, websocket: bool
    ) -> None:
        """Raises `ConfigError` when a port cannot be had, or no listener is left."""
        context = self._context
        tls = server_tls(context.tls_cert, context.tls_key)
        if websocket and tls is None and not context.plain_websocket_allowed:
            websocket = False
            log.warning(
                "no WebSocket listener: tokens would travel in clear to %s. Set TIPOFF_TLS_CERT and TIPOFF_TLS_KEY, or "
                "TIPOFF_WEBSOCKET_URL when a proxy does the TLS, or TIPOFF_PLAIN_WEBSOCKET=1",
                context.public_hosts[0],
            )
            if not udp:
                raise ConfigError("no listener is left: without UDP, a WebSocket listener with TLS is needed")
        if udp:
            self.udp = await UdpTransport.listen(
                host,
                context.bind_hosts,
                self._port("udp"),
                tasks=tasks,
                private_key=context.private_key,
                protocol_id=context.protocol_id,
                dialect=context.dialect,
                addresses=(lambda bound: self._reachable("udp", bound)) if self._compares() else None,
                max_clients=roster.capacity,
                is_connected=roster.is_connected,
                has_room=lambda: roster.has_room,
            )
        if websocket:
            matchmaker = (
                self._matchmaker(boot_id, lambda: host.refusal(None)) if context.stand_alone else None
            )
            self.websocket = await WebSocketTransport.listen(
                host,
                context.bind_hosts,
                self._port("websocket"),
                tasks=tasks,
                tls=tls,
                matchmaker=matchmaker,
                paths=context.websocket_paths,
                proxied=bool(context.websocket_url),
            )

    def all(self) -> list[Transport]:
        return [transport for transport in (self.udp, self.websocket) if transport is not None]

    async def close(self) -> None:
        """All at once; idempotent."""
        if transports := self.all():
            await asyncio.gather(*(transport.close() for transport in transports))

    # --- how they are reached ---------------------------------------------------------------------------------

    @property
    def addresses(self) -> Sequence[Address]:
        """Those the matchmaker puts into tokens: UDP's, or without UDP those of the WebSocket listener."""
        if self.udp is not None:
            return self._reachable("udp", self.udp.port)
        assert self.websocket is not None
        return self._reachable("websocket", self.websocket.port)

    def token_addresses(self) -> Sequence[Address] | None:
        """The same, or None when a token's addresses are not compared."""
        return self.addresses if self._compares() else None

    @property
    def transports(self) -> Transports:
        """What players dial."""
        host = self._context.public_hosts[0]
        url = self.websocket_url
        return Transports(
            udp=UdpAddress(host, self._external("udp", self.udp.port)) if self.udp is not None else None,
            websocket=WebSocketAddress(url) if url else None,
        )

    @property
    def websocket_url(self) -> str:
        """`ws://host:port/`, or what a proxy in front is dialled by; "" without that listener."""
        if self.websocket is None:
            return ""
        if self._context.websocket_url:
            return self._context.websocket_url
        host = self._context.public_hosts[0]
        scheme = "wss" if self.websocket.secure else "ws"
        port = self._external("websocket", self.websocket.port)
        return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"

    def _compares(self) -> bool:
        """Lightyear's servers do not. Neither do we where players may reach us under addresses we do not know: a
        server that stands alone on every interface."""
        context = self._context
        everywhere = any(host in ("0.0.0.0", "::") for host in context.public_hosts)  # noqa: S104  # compared only
        return context.dialect is Dialect.STANDARD and not (context.stand_alone and everywhere)

    def _port(self, name: str) -> int:
        port = self._context.ports.get(name)
        return port.internal if port is not None else 0

    def _external(self, name: str, bound: int) -> int:
        port = self._context.ports.get(name)
        return port.external if port is not None and port.external else bound

    def _reachable(self, name: str, bound: int) -> list[Address]:
        """Every `ip:port` under which players may know this listener, the main one first."""
        context = self._context
        external = self._external(name, bound)
        places = [(host, external) for host in context.public_hosts]
        places += [(host, bound) for host in context.bind_hosts]
        addresses: list[Address] = []
        for host, port in places:
            try:
                address = Address(host, port)
            except InvalidAddress:  # a DNS name: players are told it, a token cannot hold it
                continue
            if not address.ip.is_unspecified and address not in addresses:
                addresses.append(address)
        return addresses or [Address("127.0.0.1", bound)]

    def _matchmaker(self, boot_id: str, full: Callable[[], Refusal | None]) -> Matchmaker:
        udp_port = self.udp.port if self.udp is not None else None
        return Matchmaker(self._context, boot_id, udp_port=udp_port, full=full)
