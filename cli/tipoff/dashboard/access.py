"""Decides who may use the dashboard: the developer on this machine, from the dashboard's own page. Pure.

another machine        the connection's address: this machine's, or a network that `--dashboard-from` names
through a proxy        a forwarding header: whoever is behind the proxy is not on this machine
DNS rebinding          the Host header: a loopback name or address, or one that `tipoff up` told players
another web page       Origin and Sec-Fetch-Site, and a secret that only the dashboard's page has
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from tipoff_matchmaker_httpd.admission.origin import same_origin, split_host
from tipoff_matchmaker_httpd.state import header
from tipoff_shared.admission.client_address import Network, parse_address, within
from tipoff_shared.errors import ConfigError, NotAllowed
from tipoff_shared.secret import Secret

TOKEN_HEADER = b"x-tipoff-dashboard"
"""The header in which the page sends its secret. No form can send it, and no other page by a simple request."""
_FORWARDED = {
    b"forwarded",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-real-ip",
    b"cf-connecting-ip",
}


@dataclass(frozen=True, slots=True)
class AccessRule:
    """`hosts`: names and addresses that `tipoff up` told players, in lower case. `networks`: whose machines may use the
    dashboard beside this one. `token`: the secret of the page."""

    hosts: frozenset[str]
    networks: tuple[Network, ...]
    token: Secret

    def check_visitor(self, scope: Mapping[str, Any]) -> None:
        """Raise `NotAllowed` for a request that is not from this machine, or that a foreign page sent."""
        headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
        if any(name in _FORWARDED for name, _ in headers):
            raise NotAllowed(
                "the dashboard is for the developer on this machine, not for visitors by a proxy"
            )
        if not self._from_here(scope):
            raise NotAllowed(
                "the dashboard is for the developer on the machine of `tipoff up`; "
                "`tipoff up --dashboard-from NETWORK` admits other machines"
            )
        if not self._names_us(header(headers, b"host")):
            raise NotAllowed("the dashboard is at localhost, or at an address that `tipoff up` has printed")
        origin, site = header(headers, b"origin"), header(headers, b"sec-fetch-site")
        secure = scope["scheme"] == "https"
        if origin is not None and not same_origin(origin, header(headers, b"host"), secure):
            raise NotAllowed("other pages may not use the dashboard")
        if site not in (None, "same-origin", "none") and header(headers, b"sec-fetch-mode") != "navigate":
            raise NotAllowed("other pages may not use the dashboard")

    def check_page(self, scope: Mapping[str, Any]) -> None:
        """Raise `NotAllowed` for a request that the dashboard's own page has not sent."""
        self.check_visitor(scope)
        given = header(scope["headers"], TOKEN_HEADER) or ""
        if not hmac.compare_digest(given.encode("latin-1"), self.token.reveal().encode()):
            raise NotAllowed("the dashboard's page is of an earlier `tipoff up`; load it again")

    def _from_here(self, scope: Mapping[str, Any]) -> bool:
        client, server = scope.get("client"), scope.get("server")
        peer = parse_address(client[0]) if client else None
        if peer is None:
            return False
        own = parse_address(server[0]) if server else None
        return peer.is_loopback or peer == own or within(peer, self.networks)

    def _names_us(self, host: str | None) -> bool:
        name, _ = split_host(host or "")
        address = parse_address(name.strip("[]"))
        if address is not None and address.is_loopback:
            return True
        return name == "localhost" or name.endswith(".localhost") or name.strip("[]") in self.hosts


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse `192.168.1.0/24,203.0.113.7`. Raises `ConfigError`."""
    try:
        return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as exc:
        raise ConfigError(
            f"--dashboard-from {text}: {exc}; a network like 192.168.1.0/24 is expected"
        ) from exc
