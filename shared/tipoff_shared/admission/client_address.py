"""Decides which address a player plays from. Servers start near it, so by default nobody can forge it.

The rule, in this order: the socket's peer; if that is a trusted proxy, the right-most entry of X-Forwarded-For (or
RFC 7239 Forwarded) that is not a trusted proxy itself; a `client_ip` of the request only where the operator allows it;
a loopback or private result is replaced by the configured stand-in. Pure functions, no socket.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Literal, TypeAlias

from tipoff_shared.errors import Malformed

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

PRIVATE_NETWORKS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "169.254.0.0/16",
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)
"""Addresses that say nothing about where in the world a player is."""

MAX_HOPS = 32
"""Forwarding entries that are read; nobody has that many proxies."""


@dataclass(frozen=True, slots=True)
class AddressRule:
    """The operator's part of the rule."""

    trusted_proxies: tuple[Network, ...] = ()
    """Networks of the reverse proxies whose forwarding header is believed."""
    proxy_header: Literal["any", "x-forwarded-for", "forwarded"] = "any"
    """The header that the proxies write. `any`: X-Forwarded-For where there is one, else Forwarded."""
    allow_client_ip: bool = False
    """Believe the `client_ip` in a request."""
    fake_ip: str = ""
    """Stands in for loopback and private addresses; "": nothing does."""


@lru_cache(maxsize=4096)
def parse_address(text: str) -> Address | None:
    """The address in `text`, which has no port, brackets or quotes; None when it is none. A zone is ignored, an
    IPv4-mapped IPv6 address becomes IPv4."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Whether the address lies in one of the networks."""
    return any(address in network for network in networks if network.version == address.version)


def peer_address(peer: str | None, headers: Headers, rule: AddressRule) -> Address:
    """The player's address by socket and proxies only; 0.0.0.0 where there is no peer (a Unix socket)."""
    socket_peer = parse_address(peer or "") or IPv4Address(0)
    if not rule.trusted_proxies or not within(socket_peer, rule.trusted_proxies):
        return socket_peer
    nearest: Address = socket_peer
    for hop in _hops_from_the_right(headers, rule.proxy_header):
        if hop is None:  # not an address: nothing to its left can be believed
            return nearest
        nearest = hop
        if not within(hop, rule.trusted_proxies):
            return hop
    return nearest


def scope_address(scope: Mapping[str, Any], rule: AddressRule) -> Address:
    """`peer_address` of an ASGI request or WebSocket."""
    client = scope.get("client")
    return peer_address(client[0] if client else None, scope["headers"], rule)


def player_address(found: Address, claimed: str | None, rule: AddressRule) -> str:
    """The address that the orchestrator gets, from `found` (by `peer_address`) and the `client_ip` of the request.

    A claim that the operator does not allow is ignored. Raises `Malformed` when an allowed one is not an address.
    """
    if claimed is not None and rule.allow_client_ip:
        address = parse_address(claimed)
        if address is None:
            raise Malformed("client_ip: an IPv4 or IPv6 address is expected")
        found = address
    if rule.fake_ip and (found.is_unspecified or within(found, PRIVATE_NETWORKS)):
        return rule.fake_ip
    return str(found)


def _hops_from_the_right(headers: Headers, kind: str) -> list[Address | None]:
    """The forwarding entries, nearest first; None for one that is not an address."""
    forwarded_for: list[str] = []
    forwarded: list[str] = []
    for name, value in headers:
        if name == b"x-forwarded-for":
            forwarded_for.append(value.decode("latin-1"))
        elif name == b"forwarded":
            forwarded.append(value.decode("latin-1"))
    if forwarded_for and kind != "forwarded":
        entries = [part.strip() for line in forwarded_for for part in line.split(",")]
        return [_node(entry) for entry in entries[: -MAX_HOPS - 1 : -1]]
    if forwarded and kind != "x-forwarded-for":
        elements = [element for line in forwarded for element in split_quoted(line, ",")]
        return [_node(_for(element)) for element in elements[: -MAX_HOPS - 1 : -1]]
    return []


def split_quoted(text: str, separator: str) -> list[str]:
    """Split at `separator` outside of quoted strings (RFC 9110 §5.6.4). An open quote runs to the end."""
    parts: list[str] = []
    start, quoted, escaped = 0, False, False
    for at, char in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == separator and not quoted:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return parts


def _for(element: str) -> str:
    """The node in the `for` parameter of one element of a Forwarded header, "" where there is none."""
    for pair in split_quoted(element, ";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            value = value.strip()
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            return value
    return ""


_WITH_PORT = re.compile(r"\[([0-9a-fA-F:.%\w]+)\](?::\w+)?|([0-9.]+)(?::\w+)?", re.ASCII)


def _node(text: str) -> Address | None:
    """RFC 7239 §6: an address, perhaps with a port, IPv6 in brackets. `unknown`, `_hidden` and all else: None."""
    if len(text) > 64:
        return None
    if found := _WITH_PORT.fullmatch(text):
        return parse_address(found[1] or found[2])
    return parse_address(text)
