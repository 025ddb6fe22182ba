"""Bounds the work that strangers' connection requests cause, and shares it between their addresses.

Anybody can send requests that only decrypting tells from a player's. Decrypting one costs more than sending it, so a
server decrypts `rate` of them a second and drops the others unread. A real client repeats its request ten times a
second. Established clients' packets are never counted.

    tokens  ├──────── reserve ────────┤├──────── anybody's ────────┤
            0                      burst / 2                     burst

An address that has asked for little lately may take the last token; one that asks for much only those above the
reserve. So one address, or a few hundred, can use what is left over but keep nobody out. A sender that forges many
source addresses can: then a request of a real client has the chance that its share of all requests gives it.
"""

from __future__ import annotations

import socket

_MODEST_RATE = 10.0
_MODEST_BURST = 4.0
"""What an address may ask for before it counts as asking for much: one client that repeats its request."""
_HOSTS = 8192
_HALF_OF_IPV6 = 8


class RequestBudget:
    """A token bucket of `rate` a second, at most `burst` at once, whose lower half is kept for modest addresses.

    `open_for` says whether a request may be decrypted, `take` notes that one was. Times are seconds of one monotonic
    clock. At most 8192 addresses are remembered; of IPv6 addresses the network (/64) counts.
    """

    __slots__ = ("_at", "_burst", "_hosts", "_rate", "_reserve", "_tokens")

    def __init__(self, rate: float = 5000.0, burst: float = 500.0) -> None:
        self._rate = rate
        self._burst = burst
        self._reserve = burst / 2
        self._tokens = burst
        self._at = float("-inf")
        self._hosts: dict[str, tuple[float, float]] = {}
        """Host -> what it has taken, less `_MODEST_RATE` a second, and when that was counted; longest ago first."""

    def __len__(self) -> int:
        """Addresses that are remembered."""
        return len(self._hosts)

    def open_for(self, host: str, now: float) -> bool:
        """Whether a request from `host` (an IP address) may be decrypted now."""
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        if self._tokens > self._reserve:
            return True
        return self._tokens >= 1.0 and self._taken(_network(host), now) < _MODEST_BURST

    def take(self, host: str, now: float) -> None:
        """Count one decryption; `open_for` has just returned True."""
        network = _network(host)
        taken = self._taken(network, now) + 1.0
        self._hosts.pop(network, None)
        self._hosts[network] = (taken, now)
        if len(self._hosts) > _HOSTS:
            del self._hosts[next(iter(self._hosts))]
        self._tokens -= 1.0

    def _taken(self, network: str, now: float) -> float:
        taken, at = self._hosts.get(network, (0.0, now))
        return max(0.0, taken - (now - at) * _MODEST_RATE)


def _network(host: str) -> str:
    """What counts as one address: for IPv6 the /64, which one household has."""
    if ":" not in host:
        return host
    return socket.inet_pton(socket.AF_INET6, host)[:_HALF_OF_IPV6].hex()
