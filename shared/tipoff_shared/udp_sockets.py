"""Reads and writes the UDP sockets of one port, on every event loop.

    kernel ──drain──> batch of datagrams ──received──> a netcode machine ──send──> kernel

A socket is drained whenever it is readable, so that a burst costs one turn of the event loop. Windows' proactor loop
has no readers; there asyncio reads one datagram after the other.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from tipoff_shared.netcode import Address
from tipoff_shared.primitives import udp_socket

DRAINED_AT_ONCE = 512
"""Datagrams taken in before the event loop gets its turn again."""

Datagrams = Sequence[tuple[bytes, Address]]


class UdpSockets:
    """Non-blocking bound sockets, at most one of each address family, which are this object's from now on.

    `received` gets what came, up to `DRAINED_AT_ONCE` datagrams at a time.
    """

    def __init__(self, sockets: Sequence[socket.socket], received: Callable[[Datagrams], None]) -> None:
        self.dropped = 0
        """Datagrams that the system would not take."""
        self._loop = asyncio.get_running_loop()
        self._received = received
        self._sockets = list(sockets)
        self._by_family = {sock.family: sock for sock in sockets}
        self._default = self._sockets[0]
        self._one_family = len(self._by_family) == 1
        self._transports: dict[socket.AddressFamily, asyncio.DatagramTransport] = {}

    async def open(self) -> None:
        """Start reading."""
        for sock in self._sockets:
            try:
                self._loop.add_reader(sock, self._readable, sock)
            except NotImplementedError:  # the default event loop of Windows
                transport, _ = await self._loop.create_datagram_endpoint(
                    lambda: _Reader(self._received_one), sock=sock
                )
                self._transports[sock.family] = transport

    def send(self, datagrams: Datagrams) -> None:
        """Send each to its address. What the system does not take is lost, as on any network. Never raises."""
        if self._transports:
            for data, address in datagrams:
                if (transport := self._transports.get(address.family)) is not None:
                    transport.sendto(data, address)
        elif self._one_family:
            self._send_all(self._default.sendto, datagrams)
        else:
            for item in datagrams:
                self._send_all(self._by_family.get(item[1].family, self._default).sendto, (item,))

    def close(self) -> None:
        """Close the sockets. Idempotent."""
        for transport in self._transports.values():
            transport.close()
        if not self._transports:
            for sock in self._sockets:
                if sock.fileno() >= 0:
                    self._loop.remove_reader(sock)
                    sock.close()

    def _readable(self, sock: socket.socket) -> None:
        from_socket = Address.from_socket
        self._received(
            [(data, from_socket(sender)) for data, sender in udp_socket.drain(sock, DRAINED_AT_ONCE)]
        )

    def _received_one(self, data: bytes, sender: tuple[Any, ...]) -> None:
        self._received([(data, Address.from_socket(sender))])

    def _send_all(self, sendto: Callable[[bytes, Any], int], datagrams: Datagrams) -> None:
        for data, address in datagrams:
            try:
                sendto(data, address)
            except OSError:  # buffer full, no route, the peer's port is closed
                self.dropped += 1


class _Reader(asyncio.DatagramProtocol):
    """Passes each datagram to a function, on event loops without `add_reader`."""

    def __init__(self, received: Callable[[bytes, tuple[Any, ...]], None]) -> None:
        self.datagram_received = received  # type: ignore[method-assign,assignment]  # a shortcut past one call
