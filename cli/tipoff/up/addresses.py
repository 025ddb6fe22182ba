"""Decides at which addresses players reach `tipoff up` and where it listens, and opens its port."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tipoff_shared.errors import ConfigError

BACKLOG = 2048

AUTO = ("auto", "0.0.0.0", "::", "*")  # noqa: S104 # compared, not bound
"""Values of `--host` that mean: whatever addresses this machine has."""

_LOOPBACK = ("127.0.0.1", "::1")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 # asked for by `--host auto` or a name
_ATTEMPTS = 20
_NAME = re.compile(r"([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Reach:
    """`hosts`: what players dial, the main one first, a name followed by the address it resolves to. `pages`: the hosts
    in the URLs of the page. `bind`: the addresses to listen on; those after the first are left out where this machine
    does not have them."""

    hosts: tuple[str, ...]
    pages: tuple[str, ...]
    bind: tuple[str, ...]

    @property
    def ipv4(self) -> str | None:
        """The first IPv4 address that players dial."""
        return next((str(ip) for ip in self.addresses if ip.version == 4), None)

    @property
    def name(self) -> str | None:
        """The DNS name that `--host` gave."""
        page = self.pages[0]
        return None if ":" in page or page.rpartition(".")[2].isdigit() else page

    @property
    def addresses(self) -> list[IpAddress]:
        """`hosts` without names."""
        found = []
        for host in self.hosts:
            with contextlib.suppress(ValueError):
                found.append(ipaddress.ip_address(host))
        return found

    @property
    def only_here(self) -> bool:
        """Whether no other machine can reach it."""
        return all(address.is_loopback for address in self.addresses)


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


def look_up(name: str) -> list[str]:
    """The addresses of a host name, in the resolver's order. Blocks. Raises `OSError`."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def find_reach(
    host: str,
    *,
    secure: bool = False,
    lan: Callable[[], str | None] = lan_address,
    resolve: Callable[[str], list[str]] = look_up,
) -> Reach:
    """What `--host` means. Raises `ConfigError`, which says what is allowed.

    Players use a name only where a certificate is for it (`secure`): without TLS they get its address, since a game
    server opens an unencrypted WebSocket only where it sees that its address is private.
    """
    if host in AUTO:
        found = lan()
        return Reach((found, "127.0.0.1"), (found, "127.0.0.1"), _EVERYWHERE) if found else _here("127.0.0.1")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return _named(host, secure, resolve)
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id or address.is_link_local:
            raise ConfigError(
                f"--host {host}: a link-local address is not complete without a zone, which a connect token cannot "
                "hold; name another address of this machine"
            )
        address = address.ipv4_mapped or address
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise ConfigError(f"--host {host}: players cannot dial this address; `--host auto` finds one")
    if address.is_loopback:
        return _here(str(address))
    return Reach((str(address),), (str(address),), (str(address), *_LOOPBACK))


def _here(host: str) -> Reach:
    return Reach((host,), (host,), tuple(dict.fromkeys((host, *_LOOPBACK))))


def _named(host: str, secure: bool, resolve: Callable[[str], list[str]]) -> Reach:
    name = host.rstrip(".").lower()
    with contextlib.suppress(UnicodeError):
        name = name.encode("idna").decode()
    if len(name) > 253 or not _NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise ConfigError(
            f"--host {host}: `auto`, an IP address or a DNS name is expected, without scheme and port (--port)"
        )
    try:
        found = [ipaddress.ip_address(text.partition("%")[0]) for text in resolve(name)]
    except (OSError, UnicodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise ConfigError(
            f"--host {host}: the name has no address here ({reason}); correct its DNS record, or give an address"
        ) from exc
    dialled = next((ip for ip in found if ip.version == 4), found[0])
    hosts = (name, str(dialled)) if secure else (str(dialled),)
    return Reach(hosts, (name,), _LOOPBACK if dialled.is_loopback else _EVERYWHERE)


def url_host(host: str) -> str:
    """The host as URLs write it."""
    return f"[{host}]" if ":" in host else host


class PortInUse(ConfigError):
    """Another program has the port."""


def listen_on_first(hosts: Sequence[str], ports: Iterable[int]) -> list[socket.socket]:
    """As `listen`, on the first of `ports` that is free; on any free one where none of them is. Raises `ConfigError`
    for another reason than a port in use."""
    for port in ports:
        try:
            return listen(hosts, port)
        except PortInUse:
            continue
    return listen(hosts, 0)


def is_free(port: int) -> bool:
    """Whether a program can listen on the port, on loopback."""
    try:
        _listen_one("127.0.0.1", port).close()
    except (OSError, OverflowError):
        return False
    return True


def listen(hosts: Sequence[str], port: int) -> list[socket.socket]:
    """A listening socket for each of `hosts`, all on `port` (0: any that is free on all). Raises `ConfigError`, which
    says what to do.

    Only the first must be an address of this machine: not every one has IPv6. `up` holds the sockets and every httpd
    accepts from them: connections wait in them while an httpd restarts, and an httpd that hangs takes no new ones.
    """
    for attempt in range(_ATTEMPTS):
        sockets: list[socket.socket] = []
        chosen = port
        for host in hosts:
            try:
                sock = _listen_one(host, chosen)
            except OSError as exc:
                if sockets and exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                for open_one in sockets:
                    open_one.close()
                if port == 0 and sockets and attempt < _ATTEMPTS - 1:
                    break  # the port that was free on the first address is taken on another
                raise _refusal(host, chosen, exc) from exc
            sockets.append(sock)
            chosen = sock.getsockname()[1]
        else:
            return sockets
    raise AssertionError("the last attempt returns or raises")


def _listen_one(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With IPPROTO_TCP, because asyncio turns Nagle's algorithm off only then.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _refusal(host: str, port: int, exc: OSError) -> ConfigError:
    if exc.errno == errno.EADDRINUSE:
        return PortInUse(f"port {port} is in use by another program (on {host}); choose another with --port")
    if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return ConfigError(
            f"{host} is not an address of this machine; `--host auto` finds one, and behind an address translation "
            "(NAT) give the name that players use"
        )
    return ConfigError(f"cannot listen on {host}, port {port}: {exc.strerror or exc}")
