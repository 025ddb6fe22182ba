"""Opens the sockets that httpd listens on, and reads its certificate. Errors name the setting and what to do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Any

from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.errors import ConfigError
from tipoff_shared.primitives.server_certificate import ServerCertificate

BACKLOG = 2048
"""Connections that wait in a socket to be accepted."""


def bind(settings: Settings) -> list[socket.socket]:
    """The sockets of the main port; raises `ConfigError`."""
    if settings.listen_fd:
        return [inherited(descriptor) for descriptor in settings.listen_fd]
    return bind_port(settings.host, settings.port, "TIPOFF_HTTPD_PORT (0: any free one), TIPOFF_HTTPD_HOST")


def bind_port(hosts: Iterable[str], port: int, variables: str) -> list[socket.socket]:
    """A listening socket for every address of every host, all on one port (0: any free one).

    Raises `ConfigError` that says what to do; `variables` are the settings that it names.
    """
    sockets: list[socket.socket] = []
    host = ""
    try:
        for host in hosts:
            for family, address in _resolve(host, port):
                # asyncio turns Nagle's algorithm off only where the protocol is named; it costs each answer 40 ms.
                sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
                sockets.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.setblocking(False)
                sock.bind(address)
                # Listening shows at once whether another process has the port; clients wait in the backlog.
                sock.listen(BACKLOG)
                port = sock.getsockname()[1]
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {os.strerror(exc.errno) if exc.errno else exc}. Stop what uses it "
            f"or choose another: {variables}"
        ) from exc
    return sockets


def inherited(descriptor: int) -> socket.socket:
    """The listening socket inherited as this file descriptor; raises `ConfigError` when it is not one."""
    try:
        sock = socket.socket(fileno=descriptor)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError("it does not listen")
    except OSError as exc:
        raise ConfigError(f"TIPOFF_HTTPD_LISTEN_FD={descriptor} is not a listening socket: {exc}") from exc
    sock.setblocking(False)
    return sock


def _resolve(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise ConfigError(f"TIPOFF_HTTPD_HOST: {host!r} is not an address of this machine: {exc}") from exc
    unique: dict[Any, socket.AddressFamily] = {}
    for family, _, _, _, address in found:
        unique.setdefault(address, family)
    return [(family, address) for address, family in unique.items()]


def certificate_of(settings: Settings) -> ServerCertificate | None:
    """The configured certificate, None without one; raises `ConfigError` when it cannot be used."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return ServerCertificate(
        settings.tls_cert,
        settings.tls_key,
        variables="TIPOFF_HTTPD_TLS_CERT,TIPOFF_HTTPD_TLS_KEY",
        alpn=("http/1.1",),
    )


def url_of(host: str, port: int, *, secure: bool) -> str:
    """A URL that reaches the socket from this machine."""
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 # compared, not bound
        host = "127.0.0.1" if host != "::" else "::1"
    if ":" in host:
        host = f"[{host}]"
    return f"{'https' if secure else 'http'}://{host}:{port}"
