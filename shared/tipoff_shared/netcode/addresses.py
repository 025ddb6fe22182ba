"""Defines `Address`, the IP address and port of a peer, and reads and writes a token's address lists.

An ``Address`` is a tuple ``(host, port)`` of canonical text and number, so it hashes and compares at C speed
(it is a dictionary key for every datagram) and can be passed to ``sendto`` unchanged.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from functools import lru_cache
from typing import Any

from .constants import MAX_TOKEN_ADDRESSES, Dialect
from .errors import InvalidAddress, InvalidToken

_GROUPS_BIG = struct.Struct(">8H")
_GROUPS_LITTLE = struct.Struct("<8H")
_PORT = struct.Struct("<H")
_COUNT = struct.Struct("<I")
_IPV4 = 1
_IPV6 = 2


class Address(tuple[str, int]):
    """An immutable ``ip:port``. Two are equal exactly when family, ip and port are.

    ``Address(ip, port)`` takes an ``ipaddress`` object or its text and raises InvalidAddress. IPv6 scope ids
    are not part of an address: a token cannot name one.
    """

    __slots__ = ()

    def __new__(cls, ip: ipaddress.IPv4Address | ipaddress.IPv6Address | str, port: int) -> Address:
        try:
            address = ipaddress.ip_address(ip)
        except ValueError:
            raise InvalidAddress(f"{ip!r} is not an IP address") from None
        if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
            raise InvalidAddress(f"{ip!r} carries a scope id, which a connect token cannot hold")
        if not 0 <= port <= 65535:
            raise InvalidAddress(f"port {port} is outside 0..65535")
        return tuple.__new__(cls, (_text(address.packed), port))

    @classmethod
    def parse(cls, text: str, *, default_port: int | None = None) -> Address:
        """Read ``1.2.3.4:5`` or ``[::1]:5``; without a port only when `default_port` is given.

        Raises InvalidAddress.
        """
        host, port_text = text, ""
        if text.startswith("["):
            host, closed, rest = text[1:].partition("]")
            if not closed or ":" not in host or (rest and not rest.startswith(":")):
                raise InvalidAddress(f"{text!r} is not an address of the form [ip]:port")
            if rest and not rest[1:]:
                raise InvalidAddress(f"{text!r} ends with a colon, but no port follows")
            port_text = rest[1:]
        elif text.count(":") == 1:
            host, _, port_text = text.partition(":")
            if not port_text:
                raise InvalidAddress(f"{text!r} ends with a colon, but no port follows")
        if port_text:
            if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
                raise InvalidAddress(f"{text!r}: {port_text!r} is not a port number")
            return cls(host, int(port_text))
        if default_port is None:
            raise InvalidAddress(f"{text!r} has no port; write 1.2.3.4:5 or [::1]:5")
        return cls(host, default_port)

    @classmethod
    def from_socket(cls, sockaddr: tuple[Any, ...]) -> Address:
        """Return the address that ``recvfrom`` or asyncio reports.

        IPv4 mapped into IPv6 (a dual-stack socket) is unmapped.
        """
        if ":" in sockaddr[0]:
            return _from_ipv6_socket(sockaddr[0], sockaddr[1])
        return tuple.__new__(cls, sockaddr)  # the kernel writes IPv4 in canonical form

    def for_family(self, family: int) -> tuple[str, int]:
        """The address for ``sendto`` on a socket of `family`: IPv4 is mapped into IPv6 for an AF_INET6 socket."""
        if family == socket.AF_INET6 and ":" not in self[0]:
            return ("::ffff:" + self[0], self[1])
        return self

    def unmapped(self) -> Address:
        """The IPv4 address inside ``::ffff:a.b.c.d``, anything else unchanged."""
        if ":" in self[0]:
            mapped = ipaddress.IPv6Address(self[0]).ipv4_mapped
            if mapped is not None:
                return Address(mapped, self[1])
        return self

    @property
    def host(self) -> str:
        """The IP address as text."""
        return self[0]

    @property
    def port(self) -> int:
        """The port."""
        return self[1]

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        """The IP address."""
        return ipaddress.ip_address(self[0])

    @property
    def family(self) -> socket.AddressFamily:
        """The socket address family."""
        return socket.AF_INET6 if ":" in self[0] else socket.AF_INET

    def __str__(self) -> str:
        return f"[{self[0]}]:{self[1]}" if ":" in self[0] else f"{self[0]}:{self[1]}"

    def __repr__(self) -> str:
        return f"Address('{self}')"

    def __getnewargs__(self) -> tuple[str, int]:  # tuple's own would pass one tuple to __new__
        return (self[0], self[1])


def _text(packed: bytes) -> str:
    """The kernel's text; ``str(IPv6Address)`` writes mapped addresses differently in different Pythons."""
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


@lru_cache(maxsize=4096)
def _from_ipv6_socket(host: str, port: int) -> Address:
    return Address(host.partition("%")[0], port).unmapped()


def encode_addresses(addresses: tuple[Address, ...], dialect: Dialect) -> bytes:
    """The address list of a token: u32 count, then 7 bytes for each IPv4 and 19 for each IPv6 address."""
    parts = [_COUNT.pack(len(addresses))]
    for host, port in addresses:
        if ":" in host:
            packed = socket.inet_pton(socket.AF_INET6, host)
            if dialect is Dialect.STANDARD:  # eight u16, low byte first; lightyear keeps network order
                packed = _GROUPS_LITTLE.pack(*_GROUPS_BIG.unpack(packed))
            parts.append(b"\x02" + packed + _PORT.pack(port))
        else:
            parts.append(b"\x01" + socket.inet_pton(socket.AF_INET, host) + _PORT.pack(port))
    return b"".join(parts)


def decode_addresses(data: bytes, offset: int, dialect: Dialect) -> tuple[tuple[Address, ...], int]:
    """Read an address list at `offset`; returns it and the offset behind it. Raises InvalidToken.

    `data` must reach 612 bytes (the longest list) beyond `offset`, which holds for both blocks of a token.
    """
    (count,) = _COUNT.unpack_from(data, offset)
    if not 1 <= count <= MAX_TOKEN_ADDRESSES:
        if 1 <= int.from_bytes(_COUNT.pack(count), "big") <= MAX_TOKEN_ADDRESSES:
            raise InvalidToken(
                "the token's integers are big-endian, as lightyear 0.20 and later write them;"
                " this side speaks the standard and lightyear up to 0.19"
            )
        raise InvalidToken(
            f"the token lists {count} server addresses; 1 to {MAX_TOKEN_ADDRESSES} are allowed"
        )
    offset += 4
    addresses: list[Address] = []
    for _ in range(count):
        kind = data[offset]
        if kind == _IPV4:
            host = socket.inet_ntop(socket.AF_INET, data[offset + 1 : offset + 5])
            end = offset + 5
        elif kind == _IPV6:
            end = offset + 17
            packed = data[offset + 1 : end]
            if dialect is Dialect.STANDARD:
                packed = _GROUPS_BIG.pack(*_GROUPS_LITTLE.unpack(packed))
            host = socket.inet_ntop(socket.AF_INET6, packed)
        else:
            raise InvalidToken(f"the token lists an address of unknown type {kind}")
        addresses.append(tuple.__new__(Address, (host, _PORT.unpack_from(data, end)[0])))
        offset = end + 2
    return tuple(addresses), offset
