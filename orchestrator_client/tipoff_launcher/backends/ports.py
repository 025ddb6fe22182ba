"""Picks host ports from the configured range."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping

from tipoff_launcher.backends.interface import PortSpec
from tipoff_orchestrator_client.base import NoCapacity, Port

SDK_PORTS = {"udp": PortSpec("udp"), "websocket": PortSpec("tcp")}
"""The ports of a game that names none: those of the game server SDK."""


class PortPicker:
    """Goes round the range, so that a port that was just freed, or just in conflict, is not picked next.

    `is_free(port, protocol)` asks the operating system, because other programs use ports too.
    """

    def __init__(self, ports: range, is_free: Callable[[int, str], bool]) -> None:
        self._ports = ports
        self._is_free = is_free
        self._next = 0

    def pick(self, wanted: Mapping[str, PortSpec], held: set[int]) -> dict[str, Port]:
        """A port for each name in `wanted`, none of them in `held`. Raises `NoCapacity`."""
        picked: dict[str, Port] = {}
        taken = set(held)
        for name, spec in wanted.items():
            port = self._pick_one(spec.protocol, taken)
            taken.add(port)
            picked[name] = Port(spec.internal or port, port, spec.protocol)
        return picked

    def _pick_one(self, protocol: str, taken: set[int]) -> int:
        for _ in range(len(self._ports)):
            port = self._ports[self._next % len(self._ports)]
            self._next += 1
            if port not in taken and self._is_free(port, protocol):
                return port
        raise NoCapacity(
            f"all ports {self._ports[0]}-{self._ports[-1]} are in use; TIPOFF_LAUNCHER_PORT_RANGE may name more",
            retryable=True,
            retry_after=5,
        )


def port_is_free(hosts: str, *, ignore_foreign: bool = False) -> Callable[[int, str], bool]:
    """A function of port and protocol that binds the port on each of `hosts` (separated by commas) to see whether it
    is free now. With `ignore_foreign`, an address that this machine does not have counts as free."""

    def is_free(port: int, protocol: str) -> bool:
        return all(is_free_on(host.strip(), port, protocol) for host in hosts.split(","))

    def is_free_on(host: str, port: int, protocol: str) -> bool:
        kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, kind) as probe:
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if protocol == "tcp":  # a connection in TIME_WAIT does not count, a listener does
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as exc:
                if exc.errno in (errno.EADDRINUSE, errno.EACCES):
                    return False
                if exc.errno == errno.EADDRNOTAVAIL and ignore_foreign:
                    return True
                raise
        return True

    return is_free
