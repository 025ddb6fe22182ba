"""Binds sockets the same way on every system: one for each host, all with one port number.

`GatedSocket` closes unwanted connections as soon as they are accepted, before TLS and before asyncio knows of them.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tipoff_shared.errors import ConfigError
from tipoff_shared.primitives import udp_socket

log = logging.getLogger(__name__)

_ATTEMPTS = 20
_REFUSED_AT_ONCE = 64
"""Connections closed before the event loop does something else."""


def bind(hosts: Sequence[str], port: int, kind: socket.SocketKind, what: str) -> list[socket.socket]:
    """One non-blocking socket for each of `hosts` (IP addresses), bound to `port`; 0 is any port free on all.

    IPv6 sockets take IPv6 only: a dual-stack socket would show IPv4 players under addresses no token names.
    Raises `ConfigError`, which says what to change.
    """
    for attempt in range(_ATTEMPTS):
        sockets: list[socket.socket] = []
        chosen = port
        try:
            for host in hosts:
                sock = _bind_one(host, chosen, kind)
                sockets.append(sock)
                chosen = sock.getsockname()[1]
        except OSError as exc:
            for sock in sockets:
                sock.close()
            if port == 0 and sockets and attempt < _ATTEMPTS - 1:
                continue  # the port that was free for the first host is taken for another
            where = hosts[min(len(sockets), len(hosts) - 1)]
            raise ConfigError(
                f"cannot listen on {where}, port {port} ({what}): {exc.strerror or exc}. Is another server running "
                "there, or is the address not one of this machine?"
            ) from exc
        if kind == socket.SOCK_DGRAM and (
            wrong := udp_socket.shortage(min(map(udp_socket.enlarge, sockets)))
        ):
            log.warning("%s", wrong)
        return sockets
    raise AssertionError("the last attempt returns or raises")


def _bind_one(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where the protocol is named: a snapshot would wait 40 ms for an answer.
    sock = socket.socket(
        family, kind, socket.IPPROTO_TCP if kind == socket.SOCK_STREAM else socket.IPPROTO_UDP
    )
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # On Windows it would allow two listeners on one port.
        if kind == socket.SOCK_STREAM and sys.platform != "win32":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


class GatedSocket(socket.socket):
    """A listening socket whose `accept` closes connections that `admits(peer's address)` does not want, and goes on to
    the next one. Asyncio's own event loop calls `accept`; uvloop does not."""

    def __init__(self, sock: socket.socket, admits: Callable[[str], bool]) -> None:
        """Takes `sock` over."""
        family, kind, protocol = sock.family, sock.type, sock.proto
        super().__init__(family, kind, protocol, fileno=sock.detach())
        self.setblocking(False)
        self._admits = admits
        self.used = False
        """Whether the event loop calls `accept`."""

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that is wanted. Raises `BlockingIOError` when none waits."""
        self.used = True
        for _ in range(_REFUSED_AT_ONCE):
            connection, address = super().accept()
            if self._admits(address[0]):
                return connection, address
            connection.close()
        raise BlockingIOError  # the event loop comes back while others wait
