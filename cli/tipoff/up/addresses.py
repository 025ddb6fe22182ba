"""Opens the port of `tipoff up`, and finds the addresses at which players reach this machine."""

from __future__ import annotations

import errno
import socket

from tipoff_shared.errors import ConfigError

BACKLOG = 2048


def lan_address() -> str | None:
    """The IPv4 source address of this machine's default route, None without one. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setblocking(False)
            # TEST-NET-1: connecting a datagram socket only asks the routing table
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") or address == "0.0.0.0" else address  # noqa: S104 # compared, not bound


def public_hosts(host: str) -> tuple[list[str], str]:
    """For `--host`: the addresses that players dial, the main one first, and the address to bind."""
    if host != "auto":
        return [host], host
    lan = lan_address()
    return ([lan, "127.0.0.1"], "0.0.0.0") if lan else (["127.0.0.1"], "127.0.0.1")  # noqa: S104 # asked for by --host auto


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on `port` (0: any free one). Raises `ConfigError`, which says what to do.

    `up` holds it and every httpd accepts from it: connections wait in it while an httpd restarts, and an httpd that
    hangs takes no new ones.
    """
    # With IPPROTO_TCP, because asyncio turns Nagle's algorithm off only then.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        if exc.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} is in use by another program; choose another with --port"
            ) from exc
        if exc.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"{host} is not an address of this machine; `--host auto` finds one") from exc
        raise ConfigError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from exc
    return sock
