"""Reads facts about UDP: from inside by binding ports and sending to ourselves, from outside with a second machine.

    here    tipoff doctor --listen 30000-30199     a small echo on those ports, for ten minutes
    there   tipoff doctor --probe HOST --ports 30000-30199

The echo answers only datagrams of one form, with as many bytes as it received, so that it amplifies nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from tipoff_shared.primitives import udp_socket

REQUEST = b"tipoff probe 1\n"
ANSWER = b"tipoff echo. 1\n"
NONCE = 16
SIZE = len(REQUEST) + NONCE
MAX_PORTS = 2000
TRIES = 3
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class PortFacts:
    """The port range on this host. `busy` ports are bound, mostly by running game servers."""

    ports: range
    busy: tuple[int, ...] = ()
    denied: str = ""
    ephemeral: range = range(0)


def receive_buffer() -> int:
    """The bytes of receive buffer that a UDP socket gets from this host's kernel."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return udp_socket.enlarge(probe)


@dataclass(frozen=True, slots=True)
class LoopFacts:
    """A datagram from here to the public address `host`. `arrived` is None when it could not be sent; `error` says
    why."""

    host: str
    port: int
    arrived: bool | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ProbeFacts:
    """What an echo on another machine answered. `refused`: the host reported a closed port (ICMP)."""

    host: str
    ports: range
    answered: frozenset[int] = frozenset()
    refused: frozenset[int] = frozenset()
    error: str = ""


def look_at_ports(ports: range) -> PortFacts:
    """Which ports are free, found out by binding each one for a moment."""
    busy: list[int] = []
    denied = ""
    for port in ports:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("0.0.0.0", port))  # noqa: S104 # as game servers do
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE:
                    busy.append(port)
                else:
                    denied = f"port {port}: {exc.strerror}"
                    break
    return PortFacts(ports, tuple(busy), denied, ephemeral_ports())


def ephemeral_ports(path: Path = _EPHEMERAL) -> range:
    """The ports that the kernel gives to programs that bind port 0."""
    try:
        first, last = path.read_text().split()
        return range(int(first), int(last) + 1)
    except (OSError, ValueError):
        return range(0)


class _Echo(asyncio.DatagramProtocol):
    def __init__(self, heard: Callable[[str], None]) -> None:
        self._heard = heard
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # asyncio's class is no subclass of it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if (answer := answer_to(data)) is not None and self._transport is not None:
            self._transport.sendto(answer, addr)
            self._heard(addr[0])


def answer_to(data: bytes) -> bytes | None:
    """What the echo answers to a datagram; None for anything but our probe."""
    if len(data) != SIZE or not data.startswith(REQUEST):
        return None
    return ANSWER + data[len(REQUEST) :]


@dataclass(slots=True)
class Echo:
    """A running echo. `open` ports answer; `busy` ports could not be bound. `heard`: address -> number of datagrams."""

    open: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    heard: dict[str, int] = field(default_factory=dict)


@asynccontextmanager
async def echo(ports: Sequence[int], host: str = "0.0.0.0") -> AsyncIterator[Echo]:  # noqa: S104 # asked for by --listen
    """Answer probes until the block ends."""
    loop = asyncio.get_running_loop()
    found = Echo()
    transports: list[asyncio.BaseTransport] = []

    def heard(address: str) -> None:
        if address in found.heard or len(found.heard) < 1000:
            found.heard[address] = found.heard.get(address, 0) + 1

    try:
        for port in ports:
            try:
                opened, _ = await loop.create_datagram_endpoint(lambda: _Echo(heard), local_addr=(host, port))
            except OSError:
                found.busy.append(port)
                continue
            transports.append(opened)
            found.open.append(opened.get_extra_info("sockname")[1])
        yield found
    finally:
        for transport in transports:
            transport.close()
        await asyncio.sleep(0)  # the loop closes the sockets at its next turn


class _Prober(asyncio.DatagramProtocol):
    def __init__(self, nonce: bytes) -> None:
        self._expected = ANSWER + nonce
        self.answered: set[int] = set()
        self.arrived = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data == self._expected:
            self.answered.add(addr[1])
            self.arrived.set()

    def error_received(self, exc: Exception) -> None:
        """Ignores ICMP's report of a closed port, which does not name the port."""


async def probe(host: str, ports: range, timeout: float) -> ProbeFacts:
    """Send to each port up to three times, until all have answered or `timeout` seconds are over."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, ports[0], family=socket.AF_INET, type=socket.SOCK_DGRAM)
    except OSError as exc:
        return ProbeFacts(host, ports, error=exc.strerror or str(exc))
    address = str(found[0][4][0])
    nonce = os.urandom(NONCE)
    transport, prober = await loop.create_datagram_endpoint(lambda: _Prober(nonce), family=socket.AF_INET)
    try:
        for _ in range(TRIES):
            for port in ports:
                if port not in prober.answered:
                    transport.sendto(REQUEST + nonce, (address, port))
                if port % 50 == 0:
                    await asyncio.sleep(0)  # not in one burst, which routers drop
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout / TRIES):
                    while len(prober.answered) < len(ports):
                        prober.arrived.clear()
                        await prober.arrived.wait()
            if len(prober.answered) == len(ports):
                break
    except OSError as exc:
        return ProbeFacts(host, ports, frozenset(prober.answered), error=exc.strerror or str(exc))
    finally:
        transport.close()
    return ProbeFacts(host, ports, frozenset(prober.answered))


async def send_to_self(host: str, ports: range, busy: Sequence[int], timeout: float) -> LoopFacts:
    """Open an echo on a free port of the range, and probe it at the public address."""
    port = next((port for port in reversed(ports) if port not in busy), 0)
    if not port:
        return LoopFacts(host, 0, None, "no port of the range is free")
    async with echo([port]) as listening:
        if not listening.open:
            return LoopFacts(host, port, None, "the port has been taken meanwhile")
        facts = await probe(host, range(port, port + 1), timeout)
    if facts.error:
        return LoopFacts(host, port, None, facts.error)
    return LoopFacts(host, port, port in facts.answered)
