"""How many at once."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tipoff_shared.admission.limits import ConcurrencyLimit
from tipoff_shared.errors import SlowDown, Unavailable


def test_one_address_has_its_bound_and_gets_room_again() -> None:
    """Others are not concerned."""
    limits = ConcurrencyLimit(10, 2)
    first = limits.enter(ip_address("203.0.113.9"))
    limits.enter(ip_address("203.0.113.9"))
    with pytest.raises(SlowDown) as caught:
        limits.enter(ip_address("203.0.113.9"))
    assert caught.value.retry_after
    limits.enter(ip_address("203.0.113.10"))
    limits.leave(first)
    limits.enter(ip_address("203.0.113.9"))


def test_an_ipv6_household_counts_as_one() -> None:
    """It has 2^64 addresses to choose from."""
    limits = ConcurrencyLimit(10, 1)
    limits.enter(ip_address("2001:db8:0:1::1"))
    with pytest.raises(SlowDown):
        limits.enter(ip_address("2001:db8:0:1:ffff::2"))
    limits.enter(ip_address("2001:db8:0:2::1"))


def test_the_process_has_its_bound() -> None:
    """Loopback too counts there, but not as an address."""
    limits = ConcurrencyLimit(3, 1)
    places = [limits.enter(ip_address("127.0.0.1")) for _ in range(3)]
    with pytest.raises(Unavailable):
        limits.enter(ip_address("203.0.113.9"))
    for place in places:
        limits.leave(place)
    assert limits.inside == 0


def test_nothing_is_kept_of_who_left() -> None:
    """The table does not grow with the players."""
    limits = ConcurrencyLimit(10, 2)
    for last in range(200):
        limits.leave(limits.enter(ip_address(f"203.0.113.{last}")))
    assert limits.addresses == 0
