"""How many players are served at one time: in the process, and from one address. Pure counting, no clock."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network

from tipoff_matchmaker_httpd.admission.client_address import Address
from tipoff_shared.errors import SlowDown, Unavailable

RETRY_AFTER = 2.0


@lru_cache(maxsize=4096)
def counted_as(address: Address) -> str:
    """The key an address counts under: an IPv6 /64 is one household. "" is not counted: loopback."""
    if address.is_loopback:
        return ""
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, 64), strict=False).network_address)
    return str(address)


class Limits:
    """`enter` before a player is served, `leave` afterwards with what `enter` returned."""

    def __init__(self, most: int, most_per_address: int) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._by_address: dict[str, int] = {}
        self.inside = 0

    def enter(self, address: Address) -> str:
        """Raises `Unavailable` when the process is full, `SlowDown` when the address has too many."""
        if self.inside >= self._most:
            raise Unavailable(
                "too many players are waiting here; try again in a moment", retry_after=RETRY_AFTER
            )
        key = counted_as(address)
        if key:
            count = self._by_address.get(key, 0)
            if count >= self._most_per_address:
                raise SlowDown(
                    f"at most {self._most_per_address} requests at once from one address",
                    retry_after=RETRY_AFTER,
                )
            self._by_address[key] = count + 1
        self.inside += 1
        return key

    def leave(self, key: str) -> None:
        self.inside -= 1
        if key:
            count = self._by_address[key] - 1
            if count:
                self._by_address[key] = count
            else:
                del self._by_address[key]
