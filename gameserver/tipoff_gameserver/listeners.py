"""Opens the listeners of one server as its context says, and names the addresses under which players reach them."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from tipoff_gameserver.context import Context, ServerOptions
from tipoff_gameserver.players.roster import Roster
from tipoff_gameserver.players.token_check import TokenCheck
from tipoff_gameserver.stand_alone import Matchmaker
from tipoff_gameserver.transports.sockets import bind
from tipoff_gameserver.transports.udp import UdpListener
from tipoff_gameserver.transports.websocket import WebSocketListener
from tipoff_shared.errors import ConfigError
from tipoff_shared.file_limit import raise_file_limit, within_file_limit
from tipoff_shared.messages import Transports, UdpAddress, WebSocketAddress
from tipoff_shared.netcode import Address, Dialect, InvalidAddress
from tipoff_shared.primitives.server_certificate import ServerCertificate
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_OTHER_FILES = 32
"""Open files of a game server besides its players' sockets, without those that the game opens."""


class Listener(Protocol):
    """A started listener of one transport."""

    def housekeeping(self, now: float) -> None:
        """Called about once a second; `now` is the event loop's time."""
        ...

    async def close(self) -> None:
        """Close the sockets, after the server hung up on every player; a few seconds at most. Idempotent."""
        ...


class Endpoints:
    """Where players reach the listeners. Pure: the context and the bound ports go in, addresses come out.

    A port is None without that listener; one of them is there.
    """

    def __init__(
        self, context: Context, udp_port: int | None, websocket_port: int | None, *, secure: bool
    ) -> None:
        self.udp_port = udp_port
        self.websocket_port = websocket_port
        self._context = context
        self._secure = secure

    @property
    def addresses(self) -> Sequence[Address]:
        """Those the matchmaker puts into tokens: UDP's, or without UDP those of the WebSocket listener."""
        if self.udp_port is not None:
            return self._reachable("udp", self.udp_port)
        return self._reachable("websocket", self.websocket_port or 0)

    @property
    def token_addresses(self) -> Sequence[Address] | None:
        """The same, or None when a token's addresses are not compared.

        Lightyear's servers do not compare them. Nor does a stand-alone server on every interface: players may reach
        it under addresses it does not know.
        """
        context = self._context
        everywhere = any(host in ("0.0.0.0", "::") for host in context.public_hosts)  # noqa: S104  # compared only
        compared = context.dialect is Dialect.STANDARD and not (context.stand_alone and everywhere)
        return self.addresses if compared else None

    @property
    def transports(self) -> Transports:
        """What players dial."""
        host = self._context.public_hosts[0]
        udp_port, url = self.udp_port, self.websocket_url
        return Transports(
            udp=UdpAddress(host, self._external("udp", udp_port)) if udp_port is not None else None,
            websocket=WebSocketAddress(url) if url else None,
        )

    @property
    def websocket_url(self) -> str:
        """`ws://host:port/`, or the URL of a proxy in front; "" without that listener."""
        if self.websocket_port is None:
            return ""
        if self._context.websocket_url:
            return self._context.websocket_url
        host = self._context.public_hosts[0]
        scheme = "wss" if self._secure else "ws"
        port = self._external("websocket", self.websocket_port)
        return f"{scheme}://[{host}]:{port}/" if ":" in host else f"{scheme}://{host}:{port}/"

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
            except InvalidAddress:  # a DNS name: players dial it, but a token cannot hold it
                continue
            if not address.ip.is_unspecified and address not in addresses:
                addresses.append(address)
        return addresses or [Address("127.0.0.1", bound)]


class Listeners:
    """UDP and WebSocket side by side. The sockets are bound at once, so `endpoints` are known; `open` starts them.

    Raises `ConfigError` when a port cannot be had, or no listener is left.
    """

    def __init__(self, context: Context, options: ServerOptions) -> None:
        self._context = context
        self._framing = options.framing
        self._certificate: ServerCertificate | None = None
        if context.tls_cert:
            self._certificate = ServerCertificate(
                context.tls_cert, context.tls_key, variables="TIPOFF_TLS_CERT,TIPOFF_TLS_KEY"
            )
        self._udp: list[socket.socket] = []
        self._websocket: list[socket.socket] = []
        self._listening: list[Listener] = []
        websocket = options.websocket
        if websocket and self._certificate is None and not context.plain_websocket_allowed:
            websocket = False
            log.warning(
                "no WebSocket listener: tokens would travel in clear to %s. Set TIPOFF_TLS_CERT and TIPOFF_TLS_KEY, or "
                "TIPOFF_WEBSOCKET_URL when a proxy does the TLS, or TIPOFF_PLAIN_WEBSOCKET=1",
                context.public_hosts[0],
            )
            if not options.udp:
                raise ConfigError("no listener is left: without UDP, a WebSocket listener with TLS is needed")
        try:
            if options.udp:
                self._udp = self._bind("udp", socket.SOCK_DGRAM, "UDP")
            if websocket:
                self._websocket = self._bind("websocket", socket.SOCK_STREAM, "WebSocket")
        except ConfigError:
            self._close_unopened()
            raise
        self.endpoints = Endpoints(
            context, _port_of(self._udp), _port_of(self._websocket), secure=self._certificate is not None
        )

    def _bind(self, name: str, kind: socket.SocketKind, what: str) -> list[socket.socket]:
        port = self._context.ports.get(name)
        return bind(self._context.bind_hosts, port.internal if port is not None else 0, kind, what)

    async def open(
        self,
        roster: Roster,
        token_check: TokenCheck,
        tasks: Tasks,
        tick_rate: float,
        matchmaker: Matchmaker | None,
    ) -> None:
        """Start listening. A stand-alone server passes the `matchmaker` that answers `/matchmaker/ws`."""
        if self._udp:
            sockets, self._udp = self._udp, []
            addresses = self.endpoints.token_addresses
            framing = self._framing
            udp = UdpListener(sockets, self._context, roster, token_check, tasks, addresses, framing)
            self._listening.append(udp)
            await udp.open()
        if self._websocket:
            sockets, self._websocket = self._websocket, []
            tls = None
            if self._certificate is not None:
                tls = self._certificate.context
                tasks.start(self._certificate.watch(), "renewed certificates")
            raise_file_limit()
            wanted = roster.capacity + self._context.max_strangers
            possible = within_file_limit(
                wanted, "WebSocket connections (seats and TIPOFF_MAX_STRANGERS)", reserved=_OTHER_FILES
            )
            context = replace(self._context, max_strangers=max(1, possible - roster.capacity))
            websocket = WebSocketListener(
                context, roster, token_check, tasks, tick_rate, tls, matchmaker, self._framing
            )
            self._listening.append(websocket)
            await websocket.open(sockets)

    def housekeeping(self, now: float) -> None:
        """Called about once a second; `now` is the event loop's time."""
        for listener in self._listening:
            listener.housekeeping(now)

    async def close(self) -> None:
        """Close all at once. Idempotent."""
        if self._listening:
            await asyncio.gather(*(listener.close() for listener in self._listening))
        self._close_unopened()

    def _close_unopened(self) -> None:
        for sock in (*self._udp, *self._websocket):
            sock.close()


def _port_of(sockets: Sequence[socket.socket]) -> int | None:
    return sockets[0].getsockname()[1] if sockets else None
