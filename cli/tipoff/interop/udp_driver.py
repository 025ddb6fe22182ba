"""Drives a netcode state machine with UDP sockets and one timer of the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

from tipoff_shared.netcode import Address, Client, Server

_CLOSE_SECONDS = 1.0


def bind_udp(local: Address) -> socket.socket:
    """A socket bound to `local`, for its address family only. Raises `OSError`."""
    sock = socket.socket(local.family, socket.SOCK_DGRAM)
    try:
        if local.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setblocking(False)
        sock.bind(local)
    except BaseException:
        sock.close()
        raise
    return sock


class UdpDriver:
    """Carries datagrams and time between sockets and `machine`. `handle` gets every event and may send."""

    def __init__(self, machine: Client | Server, handle: Callable[[Any], None]) -> None:
        self._machine = machine
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._sockets: dict[int, _Socket] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, sockets: Iterable[socket.socket]) -> None:
        """Take over bound sockets, at most one of each address family, and start."""
        for sock in sockets:
            family = sock.family
            _, self._sockets[family] = await self._loop.create_datagram_endpoint(
                lambda: _Socket(self), sock=sock
            )
        self.pump()

    def pump(self) -> None:
        """Handle events, send what is due, set the timer. Call it after every input to the machine."""
        while events := self._machine.events():
            for event in cast("list[Any]", events):
                self._handle(event)
        for data, address in self._machine.datagrams_to_send():
            sock = self._sockets.get(address.family)
            if sock is not None:
                sock.send(data, address)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._machine.next_timeout()
        if due != float("inf") and self._sockets:
            self._timer = self._loop.call_at(due, self._tick)

    def received(self, data: bytes, sockaddr: tuple[Any, ...]) -> None:
        """Take a datagram from a socket."""
        self._machine.receive_datagram(data, Address.from_socket(sockaddr), self._loop.time())
        self.pump()

    def _tick(self) -> None:
        self._timer = None
        self._machine.update(self._loop.time())
        self.pump()

    async def close(self) -> None:
        """Send the machine's last datagrams, then close the sockets. Takes at most one second."""
        self.pump()
        if self._timer is not None:
            self._timer.cancel()
        sockets, self._sockets = self._sockets, {}
        for sock in sockets.values():
            sock.close()
        if sockets:
            await asyncio.wait([sock.closed for sock in sockets.values()], timeout=_CLOSE_SECONDS)


class _Socket(asyncio.DatagramProtocol):
    """A socket of a driver. Errors (closed port, no route) count as lost datagrams, which the machine times out."""

    def __init__(self, driver: UdpDriver) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._driver = driver
        self._transport: asyncio.DatagramTransport | None = None
        self._full = False

    def send(self, data: bytes, address: Address) -> None:
        # Datagrams may be lost anywhere; here that keeps the buffer from growing.
        if self._transport is not None and not self._full:
            self._transport.sendto(data, address)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()  # sends what is buffered first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self._driver.received(data, addr)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)
