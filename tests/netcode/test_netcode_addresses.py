"""Addresses: dictionary keys that come from text, tokens and sockets alike."""

from __future__ import annotations

import copy
import ipaddress
import pickle
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_shared.netcode import Address, Dialect, InvalidAddress, InvalidToken
from tipoff_shared.netcode.addresses import decode_addresses, encode_addresses

ips = st.ip_addresses().filter(lambda ip: ip.version == 4 or not ip.scope_id)
addresses = st.builds(Address, ips, st.integers(0, 65535))


@given(addresses)
def test_text_reads_back(address: Address) -> None:
    """str() and parse() are each other's reverse."""
    assert Address.parse(str(address)) == address


@given(st.lists(addresses, min_size=1, max_size=32), st.sampled_from(Dialect))
def test_token_bytes_read_back(listed: list[Address], dialect: Dialect) -> None:
    """In both dialects."""
    data = encode_addresses(tuple(listed), dialect)
    assert decode_addresses(data.ljust(700, b"\0"), 0, dialect) == (tuple(listed), len(data))


@given(st.binary(min_size=700, max_size=700), st.sampled_from(Dialect))
def test_any_bytes_are_a_list_or_a_typed_error(data: bytes, dialect: Dialect) -> None:
    """Nothing else comes out of the parser."""
    try:
        listed, end = decode_addresses(data, 0, dialect)
    except InvalidToken:
        return
    assert encode_addresses(listed, dialect) == data[:end]


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_typed_error(text: str) -> None:
    """Nothing else comes out of the parser."""
    try:
        address = Address.parse(text)
    except InvalidAddress:
        return
    assert 0 <= address.port <= 65535


def test_lightyear_writes_ipv6_in_network_order() -> None:
    """The standard writes each group low byte first; IPv4 is the same in both."""
    address = Address.parse("[2001:db8::1]:443")
    standard = encode_addresses((address,), Dialect.STANDARD)
    lightyear = encode_addresses((address,), Dialect.LIGHTYEAR)
    assert standard.hex() == "01000000" + "02" + "0120b80d000000000000000000000100" + "bb01"
    assert lightyear.hex() == "01000000" + "02" + "20010db8000000000000000000000001" + "bb01"


def test_socket_addresses_equal_parsed_ones() -> None:
    """What recvfrom reports is found in a dictionary keyed by what a token names."""
    known = {Address.parse("1.2.3.4:5"): "four", Address.parse("[2001:db8::1]:5"): "six"}
    assert known[Address.from_socket(("1.2.3.4", 5))] == "four"
    assert known[Address.from_socket(("2001:db8::1", 5, 0, 0))] == "six"


def test_mapped_ipv4_from_a_dual_stack_socket_is_unmapped() -> None:
    """And mapped again for sending through such a socket."""
    address = Address.from_socket(("::ffff:1.2.3.4", 5, 0, 0))
    assert address == Address.parse("1.2.3.4:5")
    assert address.for_family(socket.AF_INET6) == ("::ffff:1.2.3.4", 5)
    assert address.for_family(socket.AF_INET) == ("1.2.3.4", 5)


def test_mapped_address_in_a_token_stays_ipv6() -> None:
    """It is type 2 and not equal to the IPv4 address, as the standard has it."""
    assert Address.parse("[::ffff:1.2.3.4]:5") != Address.parse("1.2.3.4:5")
    assert Address.parse("[::ffff:1.2.3.4]:5").unmapped() == Address.parse("1.2.3.4:5")


def test_scope_id_of_a_link_local_peer_is_no_part_of_its_address() -> None:
    """A token cannot name one."""
    assert Address.from_socket(("fe80::1%eth0", 5, 0, 2)) == Address.parse("[fe80::1]:5")
    with pytest.raises(InvalidAddress):
        Address("fe80::1%eth0", 5)


def test_an_address_is_a_sockaddr() -> None:
    """It goes into sendto as it is."""
    address = Address(ipaddress.ip_address("127.0.0.1"), 9)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        assert sock.sendto(b"", address) == 0
    assert (address.ip, address.port, address.family) == (
        ipaddress.ip_address("127.0.0.1"),
        9,
        socket.AF_INET,
    )


def test_addresses_are_copied_and_pickled() -> None:
    """They cross process borders in results of tests and workers."""
    address = Address.parse("[::1]:5")
    assert pickle.loads(pickle.dumps(address)) == copy.deepcopy(address) == address  # noqa: S301  # our own bytes
    assert isinstance(copy.copy(address), Address)


@pytest.mark.parametrize(
    "text", ["1.2.3.4", "[::1]", "::1", "[::1]5", "[::1", "1.2.3.4:٣", "1.2.3.4:00080000"]
)
def test_what_is_not_ip_and_port_is_refused(text: str) -> None:
    """A missing port above all: 0 would be dialled in vain."""
    with pytest.raises(InvalidAddress):
        Address.parse(text)
