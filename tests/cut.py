"""Cuts connections of this process as a network does: no goodbye, and nothing gets through any more."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack


class Cuts:
    """Undone at the end: the sockets to nowhere are closed. `with Cuts() as cuts:`"""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def __enter__(self) -> Cuts:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def udp(self, port: int) -> int:
        """Turn every UDP socket that is connected to `port` towards a socket that answers nothing; returns how many."""
        count = 0
        for sock in _sockets(socket.SOCK_DGRAM, port):
            nowhere = self._stack.enter_context(socket.socket(sock.family, socket.SOCK_DGRAM))
            nowhere.bind(("127.0.0.1", 0))
            sock.connect(nowhere.getsockname())
            count += 1
        return count

    def tcp(self, port: int) -> int:
        """End every TCP connection to `port`, below the WebSocket: no close frame; returns how many."""
        count = 0
        for sock in _sockets(socket.SOCK_STREAM, port):
            sock.shutdown(socket.SHUT_RDWR)
            count += 1
        return count


def _sockets(kind: int, port: int) -> Iterator[socket.socket]:
    for fd in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{fd}").startswith("socket:"):
                continue
            copy = os.dup(int(fd))
        except OSError:
            continue  # closed meanwhile
        with socket.socket(fileno=copy) as sock:
            if sock.type == kind and _peer_port(sock) == port:
                yield sock


def _peer_port(sock: socket.socket) -> int | None:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    try:
        return int(sock.getpeername()[1])
    except OSError:
        return None  # not connected
