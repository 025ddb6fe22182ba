"""Gives a UDP socket a receive buffer that holds a burst, says what the kernel made of it, and drains it.

What arrives while a program does something else waits in this buffer; what does not fit is lost. Kernels cut the size
that a program asks for down to a limit of theirs, without an error.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

RECEIVE_BYTES = 4 << 20
"""Room for 70 ms of 50,000 datagrams of 1 KB a second, which the kernel counts at more than twice their size."""
SEND_BYTES = 1 << 20
_READ_BYTES = 2048
SYSCTL = "net.core.rmem_max"
"""The limit on Linux. Other systems have limits of their own, mostly above `RECEIVE_BYTES`."""


def enlarge(sock: socket.socket) -> int:
    """Ask for `RECEIVE_BYTES` and `SEND_BYTES`; returns the bytes that the socket may receive. Never raises."""
    _ask(sock, socket.SO_RCVBUF, RECEIVE_BYTES)
    _ask(sock, socket.SO_SNDBUF, SEND_BYTES)
    return granted(sock)


def granted(sock: socket.socket) -> int:
    """The size of the receive buffer, counted as `setsockopt` counts: Linux reports twice that (socket(7))."""
    size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    return size // 2 if sys.platform == "linux" else size


def shortage(size: int) -> str:
    """What is wrong with a receive buffer of `size` bytes and what to do; "" when it is large enough."""
    if size >= RECEIVE_BYTES:
        return ""
    return (
        f"a UDP socket got a receive buffer of {size >> 10} KiB, not {RECEIVE_BYTES >> 10} KiB: players' packets get "
        f"lost in bursts. {remedy()}"
    )


def remedy() -> str:
    """What the operator does about a `shortage`."""
    if sys.platform != "linux":
        return "Raise the system's limit for socket buffers."
    setting = f"{SYSCTL}={RECEIVE_BYTES}"
    return f"As root: `sysctl -w {setting}`; a file in /etc/sysctl.d with `{setting}` keeps it."


def _ask(sock: socket.socket, option: int, size: int) -> None:
    while size >= 65536:
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, size)
        except OSError:  # BSD and macOS refuse what Linux cuts down
            size //= 2
        else:
            return


def drain(sock: socket.socket, most: int) -> list[tuple[bytes, tuple[Any, ...]]]:
    """The datagrams that wait in a non-blocking socket, at most `most`, each with its sender. Never raises."""
    datagrams: list[tuple[bytes, tuple[Any, ...]]] = []
    recvfrom = sock.recvfrom
    for _ in range(most):
        try:
            datagrams.append(recvfrom(_READ_BYTES))
        except (BlockingIOError, InterruptedError):
            break
        except OSError:  # Windows reports a closed port of an earlier datagram; the next one may be good
            continue
    return datagrams
