"""lightyear's dialect (up to 0.19, what bevygap games speak), and the refusal of the big-endian one after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tipoff_shared.netcode import (
    Address,
    Client,
    ClientState,
    ConnectToken,
    Denial,
    DenyReason,
    Dialect,
    InvalidToken,
    PrivateKey,
    open_private,
)
from tipoff_shared.netcode.denial import decode_denial, encode_denial
from tipoff_shared.netcode.packet import TO_CLIENT, TO_SERVER, PacketReader, cipher

if TYPE_CHECKING:
    from conftest import World

BIG_ENDIAN = json.loads((Path(__file__).parents[1] / "vectors" / "vectors_lightyear_be.json").read_text())


@pytest.fixture
def lightyear(make_world: type[World]) -> World:
    world = make_world(Dialect.LIGHTYEAR)
    world.start()
    return world


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("name", ["ipv4_token", "ipv6_token"])
def test_big_endian_token_is_refused_by_name(name: str, dialect: Dialect) -> None:
    """A token of lightyear 0.20 or later, in a client, at a server and over a stream."""
    data = bytes.fromhex(BIG_ENDIAN[name])
    with pytest.raises(InvalidToken, match=r"big-endian, as lightyear 0\.20"):
        ConnectToken.decode(data, dialect)
    with pytest.raises(InvalidToken):
        open_private(data, PrivateKey(bytes(range(32))), protocol_id=0x1122334455667788, dialect=dialect)
    client = Client(data, now=0.0, dialect=dialect)
    assert client.state is ClientState.INVALID_CONNECT_TOKEN
    assert "big-endian" in str(client.failure)
    assert client.datagrams_to_send() == []


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("name", sorted(BIG_ENDIAN["packets"]))
def test_big_endian_packets_do_not_open(name: str, dialect: Dialect) -> None:
    """Protocol id and nonce are authenticated, so a packet of the other byte order is a forgery to us."""
    decrypt = cipher(bytes(range(0x20, 0x40))).decrypt
    reader = PacketReader(0x1122334455667788, TO_CLIENT | TO_SERVER, dialect)
    assert reader.read(bytes.fromhex(BIG_ENDIAN["packets"][name]), decrypt, None) is None


def test_client_learns_its_id_instead_of_an_index(lightyear: World) -> None:
    """The keep-alive's eight bytes are the client id."""
    client = lightyear.join(token=lightyear.token(client_id=0x0102030405060708))
    assert client.client_id == 0x0102030405060708
    assert client.client_index is None


def test_standard_client_reads_the_id_as_index_and_maximum(lightyear: World) -> None:
    """So a mixed pair connects, with figures that mean nothing; the packets themselves are the same."""
    token = lightyear.token(client_id=0x0000004000000003)
    client = Client(token, now=0.0, dialect=Dialect.STANDARD)
    lightyear.net.attach(lightyear.address(), client)
    lightyear.net.advance(0.1)
    assert (client.state, client.client_index, client.max_clients) == (ClientState.CONNECTED, 3, 0x40)


def test_server_s_address_is_not_compared(lightyear: World) -> None:
    """Behind WebTransport or a port mapping, lightyear servers do not know their own."""
    token = lightyear.token(internal_addresses=[Address("203.0.113.99", 1)])
    assert lightyear.join(token=token).state is ClientState.CONNECTED


def test_ipv6_token_is_for_one_dialect_only(make_world: type[World]) -> None:
    """Its groups are swapped for the other: it names another address there."""
    world = make_world(Dialect.LIGHTYEAR)
    world.home = Address("2001:db8::1", 443)
    data = world.token().encode()
    assert ConnectToken.decode(data, Dialect.LIGHTYEAR).addresses == (world.home,)
    assert ConnectToken.decode(data, Dialect.STANDARD).addresses == (Address("120:b80d::100", 443),)


@pytest.mark.parametrize(
    "denial",
    [Denial(reason) for reason in DenyReason if reason is not DenyReason.CUSTOM]
    + [Denial(DenyReason.CUSTOM, "the season is over ☃"), Denial(DenyReason.CUSTOM, "")],
    ids=str,
)
def test_denied_client_is_told_why(lightyear: World, denial: Denial) -> None:
    """The application's reason arrives."""
    lightyear.start(admission=lambda _request: denial)
    client = lightyear.dial()
    lightyear.net.advance(0.1)
    assert (client.state, client.denial) == (ClientState.CONNECTION_DENIED, denial)
    assert client.failure is not None
    assert str(denial) in client.failure


def test_long_reason_is_cut_at_a_character() -> None:
    """255 bytes of valid UTF-8 at most."""
    body = encode_denial(Denial(DenyReason.CUSTOM, "é" * 200), Dialect.LIGHTYEAR)
    assert body[1] == 254
    assert len(body) == 256
    assert decode_denial(body) == Denial(DenyReason.CUSTOM, "é" * 127)


def test_full_server_says_so(lightyear: World) -> None:
    """Reason 0."""
    lightyear.start(max_clients=1)
    lightyear.join(1)
    late = lightyear.dial(number=2)
    lightyear.net.advance(0.1)
    assert late.denial == Denial(DenyReason.FULL)


def test_lightyear_client_takes_a_standard_denial(lightyear: World) -> None:
    """Without a reason, it is denied all the same."""
    token = lightyear.token()
    lightyear.dialect = Dialect.STANDARD
    lightyear.start(admission=lambda _request: Denial(DenyReason.BANNED))
    client = Client(token, now=0.0, dialect=Dialect.LIGHTYEAR)
    lightyear.net.attach(lightyear.address(), client)
    lightyear.net.advance(0.1)
    assert (client.state, client.denial) == (ClientState.CONNECTION_DENIED, None)


def test_standard_client_drops_a_denial_with_a_reason(lightyear: World) -> None:
    """As the reference does: it runs into its timeout."""
    lightyear.start(admission=lambda _request: Denial(DenyReason.BANNED))
    client = Client(lightyear.token(timeout=2), now=0.0, dialect=Dialect.STANDARD)
    lightyear.net.attach(lightyear.address(), client)
    lightyear.net.advance(3.0)
    assert client.state is ClientState.CONNECTION_REQUEST_TIMED_OUT


@pytest.mark.parametrize(
    "body", [b"\x07", b"\xff", b"", b"\x06", b"\x06\x05ab", b"\x06\x02\xff\xfe", b"\x00extra"]
)
def test_odd_denials_are_read_without_error(body: bytes) -> None:
    """They are authentic, so the client is denied; what they say is taken as far as it makes sense."""
    assert decode_denial(body) is None or isinstance(decode_denial(body), Denial)


@pytest.mark.parametrize("client_id", [6, 1, 2**32 + 1, 2**63 - 1])
def test_a_standard_client_says_that_the_server_speaks_lightyear(
    make_world: type[World], client_id: int
) -> None:
    """The client id would show as slot 6 of 0. It leaves at once, so that the server's slot is free."""
    world = make_world(Dialect.LIGHTYEAR)
    world.start()
    client = Client(world.token(client_id), now=world.net.now, dialect=Dialect.STANDARD)
    world.net.attach(world.address(), client)
    world.net.advance(0.5)
    assert client.state is ClientState.CONNECTION_DENIED
    assert "lightyear" in (client.failure or "")
    assert world.server.connected_count == 0
