"""The player's address: what may be believed, and what not."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared.admission.client_address import AddressRule, peer_address, player_address
from tipoff_shared.errors import Malformed

PROXIES = AddressRule(trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48")))


def found(peer: str | None, rule: AddressRule = PROXIES, **headers: str) -> str:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return str(peer_address(peer, raw, rule))


def test_without_proxies_the_peer_is_the_player() -> None:
    """Whatever the headers say."""
    everything: dict[str, Any] = {"x_forwarded_for": "1.1.1.1", "forwarded": "for=1.1.1.1"}
    assert found("198.51.100.4", AddressRule(), **everything) == "198.51.100.4"


@pytest.mark.row(11)
def test_an_untrusted_peer_is_not_believed() -> None:
    """A player who sends the header himself."""
    assert found("198.51.100.4", x_forwarded_for="1.1.1.1") == "198.51.100.4"


@pytest.mark.row(11)
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("1.1.1.1, 203.0.113.9", "203.0.113.9"),  # the left one is what the player claimed
        ("1.1.1.1, 203.0.113.9, 10.2.2.2", "203.0.113.9"),  # two proxies of ours
        ("10.3.3.3, 10.2.2.2", "10.3.3.3"),  # all ours: the farthest one
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, garbage", "10.1.1.1"),  # nothing left of garbage is believed
        ("203.0.113.9, unknown, 10.2.2.2", "10.2.2.2"),
        ('203.0.113.9"; evil="', "10.1.1.1"),
        ("203.0.113.9, ", "10.1.1.1"),
        ("", "10.1.1.1"),
    ],
)
def test_the_rightmost_untrusted_entry_is_the_player(header: str, expected: str) -> None:
    """X-Forwarded-For from a trusted proxy."""
    assert found("10.1.1.1", x_forwarded_for=header) == expected


def test_several_header_lines_are_one_list() -> None:
    """Proxies may add their own line."""
    lines = [(b"x-forwarded-for", b"1.1.1.1"), (b"x-forwarded-for", b"203.0.113.9")]
    assert str(peer_address("10.1.1.1", lines, PROXIES)) == "203.0.113.9"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ("For=203.0.113.9;proto=https;by=10.1.1.1", "203.0.113.9"),
        ('for=1.1.1.1, for="[2001:db8::7]:4711"', "2001:db8::7"),
        ('for="203.0.113.9:80"', "203.0.113.9"),
        ('for="a, for=1.1.1.1", for=203.0.113.9', "203.0.113.9"),  # a comma within quotes
        ('for=203.0.113.9;by="x\\", for=1.1.1.1"', "203.0.113.9"),  # a quote escaped within quotes
        ("for=_hidden", "10.1.1.1"),
        ("for=unknown", "10.1.1.1"),
        ("by=203.0.113.9", "10.1.1.1"),
        ('for="', "10.1.1.1"),
    ],
)
def test_rfc_7239_is_understood(header: str, expected: str) -> None:
    """Forwarded from a trusted proxy."""
    assert found("10.1.1.1", forwarded=header) == expected


def test_one_header_wins_where_both_are_there() -> None:
    """A proxy that writes X-Forwarded-For may let a Forwarded header pass as the player sent it."""
    both = {"x_forwarded_for": "203.0.113.9", "forwarded": "for=1.1.1.1"}
    assert found("10.1.1.1", **both) == "203.0.113.9"  # type: ignore[arg-type] # headers, not the rule
    only = AddressRule(PROXIES.trusted_proxies, proxy_header="forwarded")
    assert found("10.1.1.1", only, **both) == "1.1.1.1"
    other = AddressRule(PROXIES.trusted_proxies, proxy_header="x-forwarded-for")
    assert found("10.1.1.1", other, forwarded="for=1.1.1.1") == "10.1.1.1"


def test_a_trusted_ipv4_proxy_is_known_in_ipv6_clothes() -> None:
    """A dual-stack socket shows it so."""
    assert found("::ffff:10.1.1.1", x_forwarded_for="203.0.113.9") == "203.0.113.9"


@pytest.mark.row(11)
def test_a_claim_is_ignored_unless_allowed() -> None:
    """`client_ip` decides where a server starts."""
    address = ip_address("198.51.100.4")
    assert player_address(address, "1.1.1.1", AddressRule()) == "198.51.100.4"
    assert player_address(address, "not an address", AddressRule()) == "198.51.100.4"
    assert player_address(address, "1.1.1.1", AddressRule(allow_client_ip=True)) == "1.1.1.1"


def test_an_allowed_claim_must_be_an_address() -> None:
    """It goes to the orchestrator."""
    with pytest.raises(Malformed):
        player_address(ip_address("198.51.100.4"), "1.1.1.1'; --", AddressRule(allow_client_ip=True))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "192.168.1.5", "10.9.9.9", "::1", "fe80::1", "fd00::1", "0.0.0.0"]
)
def test_what_says_nothing_about_the_place_is_replaced(address: str) -> None:
    """By `fake_ip`, where the operator set it."""
    assert player_address(ip_address(address), None, AddressRule(fake_ip="203.0.113.1")) == "203.0.113.1"
    assert player_address(ip_address(address), None, AddressRule()) == address


def test_a_public_address_is_not_replaced() -> None:
    """Also not one of a documentation network, which Python calls private."""
    assert player_address(ip_address("203.0.113.9"), None, AddressRule(fake_ip="1.2.3.4")) == "203.0.113.9"


@pytest.mark.row(11)
@given(st.text(max_size=200), st.text(max_size=200), st.one_of(st.none(), st.text(max_size=60)))
def test_hostile_headers_give_an_address(forwarded_for: str, forwarded: str, peer: str | None) -> None:
    """Whatever the bytes: an address comes out, and never one from the header of an untrusted peer."""
    headers = [
        (b"x-forwarded-for", forwarded_for.encode("utf-8", "surrogatepass")),
        (b"forwarded", forwarded.encode("utf-8", "surrogatepass")),
    ]
    for rule in (PROXIES, AddressRule(PROXIES.trusted_proxies, proxy_header="forwarded")):
        peer_address("10.1.1.1", headers, rule)
        assert peer_address("198.51.100.4", headers, rule) == IPv4Address("198.51.100.4")
    peer_address(peer, headers, PROXIES)
