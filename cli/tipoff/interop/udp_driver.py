"""Drives a netcode state machine with UDP sockets and one timer of the event loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any, cast

from tipoff_shared.netcode import Address, Client, Server
from tipoff_shared.primitives import udp_socket
from tipoff_shared.udp_sockets import Datagrams, UdpSockets


def bind_udp(local: Address) -> socket.socket:
    """A socket bound to `local`, for its address family only. Raises `OSError`."""
    sock = socket.socket(local.family, socket.SOCK_DGRAM)
    try:
        if local.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        udp_socket.enlarge(sock)
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
        self._sockets: UdpSockets | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, sockets: Iterable[socket.socket]) -> None:
        """Take over bound sockets, at most one of each address family, and start."""
        self._sockets = UdpSockets(list(sockets), self._received)
        await self._sockets.open()
        self.pump()

    def pump(self) -> None:
        """Handle events, send what is due, set the timer. Call it after every input to the machine."""
        while events := self._machine.events():
            for event in cast("list[Any]", events):
                self._handle(event)
        if self._sockets is not None:
            self._sockets.send(self._machine.datagrams_to_send())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self._machine.next_timeout()
        if due != float("inf") and self._sockets is not None:
            self._timer = self._loop.call_at(due, self._tick)

    def _received(self, datagrams: Datagrams) -> None:
        """Take in a batch; a server takes in those of its clients first."""
        now = self._loop.time()
        if isinstance(self._machine, Server):
            connected = self._machine.connected_addresses
            datagrams = sorted(datagrams, key=lambda datagram: datagram[1] not in connected)
        for data, address in datagrams:
            self._machine.receive_datagram(data, address, now)
        self.pump()

    def _tick(self) -> None:
        self._timer = None
        self._machine.update(self._loop.time())
        self.pump()

    async def close(self) -> None:
        """Send the machine's last datagrams, then close the sockets. Idempotent."""
        self.pump()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None
