"""How often one address may connect: asked for each socket as it is accepted."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from tipoff_shared.admission.limits import ConnectionRate

PROXIES = (ip_network("10.0.0.0/8"),)


def admitted(rate: ConnectionRate, peer: str | None, tries: int, now: float = 0.0) -> int:
    return sum(rate.admits(peer, now) for _ in range(tries))


@pytest.mark.row(89)
def test_an_address_may_connect_so_often_and_others_are_not_disturbed() -> None:
    """A burst after a pause, then its rate."""
    rate = ConnectionRate(5, 20, PROXIES)
    assert admitted(rate, "198.51.100.7", 100) == 20
    assert admitted(rate, "198.51.100.7", 100, now=2.0) == 10
    assert admitted(rate, "198.51.100.8", 100, now=2.0) == 20


@pytest.mark.row(89)
def test_a_household_is_one_address_however_it_is_written() -> None:
    rate = ConnectionRate(1, 4)
    peers = ("2001:db8::1", "2001:db8::2", "2001:db8:0:0:ffff::3")
    assert sum(admitted(rate, peer, 4) for peer in peers) == 4
    assert admitted(rate, "2001:db8:0:1::1", 4) == 4
    assert admitted(rate, "198.51.100.7", 2) + admitted(rate, "::ffff:198.51.100.7", 4) == 4


@pytest.mark.row(89)
@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "10.1.2.3", "::ffff:10.1.2.3", "", None])
def test_this_machine_trusted_proxies_and_unix_sockets_are_not_limited(peer: str | None) -> None:
    assert admitted(ConnectionRate(1, 1, PROXIES), peer, 1000) == 1000


def test_a_rate_of_nothing_is_no_limit() -> None:
    assert admitted(ConnectionRate(0, 1), "198.51.100.7", 1000) == 1000
