"""Limits what one client address may take: places held at one time, requests and new connections per second.

All count in this process only, and none reads a clock: `now` is an argument. They count under `address_key`, so
that an IPv6 household is one client and loopback is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

from tipoff_shared.admission.client_address import Address, Network, parse_address, within
from tipoff_shared.errors import SlowDown, Unavailable
from tipoff_shared.primitives.token_bucket import TokenBuckets

RETRY_AFTER = 2.0
"""Seconds after which a refused client may try again."""


@lru_cache(maxsize=4096)
def address_key(address: Address) -> str:
    """The key an address counts under: an IPv6 /64 is one household. "" means that it does not count: loopback."""
    if address.is_loopback:
        return ""
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, 64), strict=False).network_address)
    return str(address)


class ConcurrencyLimit:
    """Places in this process, and each address's share of them. Call `leave` with what `enter` returned."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self.most = most
        self.most_per_address = most_per_address
        self._by_address: dict[str, int] = {}
        self.inside = 0
        """Places taken."""

    @property
    def addresses(self) -> int:
        """Addresses that hold a place now."""
        return len(self._by_address)

    def enter(self, address: Address) -> str:
        """Take a place and return its key. Raises `Unavailable` when the process is full, `SlowDown` when the address
        has too many places; both say when to ask again."""
        if self.inside >= self.most:
            raise Unavailable(
                "too many players are waiting here; try again in a moment", retry_after=RETRY_AFTER
            )
        key = address_key(address)
        if key:
            count = self._by_address.get(key, 0)
            if count >= self.most_per_address:
                raise SlowDown(
                    f"at most {self.most_per_address} requests at once from one address",
                    retry_after=RETRY_AFTER,
                )
            self._by_address[key] = count + 1
        self.inside += 1
        return key

    def leave(self, key: str) -> None:
        """Give back the place that `enter` returned `key` for."""
        self.inside -= 1
        if key:
            count = self._by_address[key] - 1
            if count:
                self._by_address[key] = count
            else:
                del self._by_address[key]


class RateLimit(TokenBuckets[str]):
    """Requests per second of each address, in its own token bucket; loopback is not limited."""

    def take(self, key: str, now: float) -> float:
        """0.0 when the client of `key` (an `address_key`) may ask, else the seconds until it may."""
        return super().take(key, now) if key else 0.0


class ConnectionRate:
    """New connections per second of each address: a client that connects and goes, again and again, holds no place and
    costs a handshake each time. Asked when a socket is accepted, before anything is read from it. Loopback and trusted
    proxies are not limited."""

    def __init__(self, per_second: float, burst: float, trusted_proxies: Sequence[Network] = ()) -> None:
        """`per_second` in the long run, 0: no limit; after a pause `burst` at once, at least those of two seconds."""
        self._unlimited = not per_second
        self._rates = RateLimit(per_second, max(burst, 2 * per_second))
        self._trusted = tuple(trusted_proxies)

    def admits(self, peer: str | None, now: float) -> bool:
        """Whether one more connection from `peer` (None: a Unix socket) may stay."""
        if self._unlimited or not peer:
            return True
        address = parse_address(peer)
        if address is None or within(address, self._trusted):
            return True
        return not self._rates.take(address_key(address), now)
