"""Tokens and keys beyond the vectors: what is refused, and what never shows."""

from __future__ import annotations

import base64
import pickle
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from tipoff_shared.netcode import (
    Address,
    ConnectToken,
    Dialect,
    InvalidKey,
    InvalidToken,
    InvalidTokenField,
    PrivateKey,
    TokenExpired,
    WrongKey,
    WrongProtocol,
    WrongServer,
    open_private,
    open_request,
)

if TYPE_CHECKING:
    from conftest import World

SECRET = bytes(range(100, 132))


@pytest.mark.parametrize(
    "text",
    [
        SECRET.hex(),
        SECRET.hex().upper() + "\n",
        ",".join(str(byte) for byte in SECRET),
        "[" + ", ".join(str(byte) for byte in SECRET) + "]",
    ],
)
def test_private_key_is_read_from_hex_and_from_decimals(text: str) -> None:
    """The second is bevygap's way."""
    assert PrivateKey.parse(text).reveal() == SECRET


@pytest.mark.parametrize(
    "text", ["", "12", "zz" * 32, SECRET.hex()[:-2], "1,2,3", ",".join(["256"] * 32), ",".join(["x"] * 32)]
)
def test_unusable_key_is_refused_without_showing_it(text: str) -> None:
    """Neither the message nor the cause quotes what was given."""
    with pytest.raises(InvalidKey) as error:
        PrivateKey.parse(text)
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__ or error.value.__context__ is None
    assert not text or text not in str(error.value)


def test_all_zero_key_is_refused_unless_wanted() -> None:
    """It is everybody's default elsewhere."""
    with pytest.raises(InvalidKey):
        PrivateKey(bytes(32))
    assert PrivateKey.parse("00" * 32, allow_zero=True).reveal() == bytes(32)


def test_generated_keys_differ() -> None:
    """There is no default key."""
    assert PrivateKey.generate() != PrivateKey.generate()


def test_key_shows_itself_nowhere() -> None:
    """repr, str, format, rich and pickle."""
    key = PrivateKey(SECRET)
    shown = f"{key!r} {key!s} {key} {pretty_repr(key)} {pretty_repr([key])}"
    assert SECRET.hex() not in shown
    assert repr(SECRET)[2:-1] not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_token_shows_its_keys_nowhere(world: World) -> None:
    """Session keys travel in the token, never in a log line; msgspec's own rich output would show them."""
    token = world.token()
    private = open_private(token, world.key, protocol_id=world.protocol_id)
    shown = f"{token!r}{token}{pretty_repr(token)}{private!r}{private}{pretty_repr([private])}"
    for secret in (token.client_to_server_key, token.server_to_client_key):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
        assert repr(secret)[2:12] not in shown


def test_base64_form_reads_back(world: World) -> None:
    """2732 characters, padding included."""
    token = world.token()
    assert len(token.to_base64()) == 2732
    assert ConnectToken.from_base64(token.to_base64()) == token
    for bad in ("", "!", token.to_base64()[:-4], "é"):
        with pytest.raises(InvalidToken):
            ConnectToken.from_base64(bad)


@pytest.mark.parametrize(
    "fields",
    [
        {"public_addresses": []},
        {"public_addresses": [Address("10.0.0.1", 1)] * 33},
        {"internal_addresses": []},
        {"internal_addresses": [Address("::1", 1)] * 33},
        {"user_data": bytes(257)},
        {"client_id": -1},
        {"client_id": 2**64},
        {"protocol_id": 2**64},
        {"timeout": 2**31},
        {"lifetime": 0},
        {"lifetime": float("nan")},
    ],
    ids=str,
)
def test_what_a_token_cannot_hold_is_refused(world: World, fields: dict[str, Any]) -> None:
    """Before anything is encrypted."""
    with pytest.raises(InvalidTokenField):
        world.token(**fields)


def test_public_and_internal_lists_may_differ_in_length(world: World) -> None:
    """One dialled address, two that the server may have behind it."""
    internal = [Address("10.0.0.1", 7777), Address("::1", 7777)]
    token = world.token(internal_addresses=internal)
    assert ConnectToken.decode(token.encode()).addresses == (world.home,)
    assert open_private(token, world.key, protocol_id=world.protocol_id).addresses == tuple(internal)


def test_expiry_says_how_late_it_is(world: World) -> None:
    """A clock that is wrong is the usual cause, so the message names it."""
    token = world.token(lifetime=30)
    open_private(token, world.key, protocol_id=world.protocol_id, unix_now=world.clock + 29.9)
    with pytest.raises(TokenExpired, match=r"expired 5 s ago .* clock"):
        open_private(token, world.key, protocol_id=world.protocol_id, unix_now=world.clock + 35)


def test_every_refusal_has_its_type(world: World) -> None:
    """Wrong key, wrong protocol id, wrong server."""
    token = world.token()
    with pytest.raises(WrongKey):
        open_private(token, PrivateKey(SECRET), protocol_id=world.protocol_id)
    with pytest.raises(WrongProtocol, match="is for protocol id 1234605616436508552, this side speaks 5"):
        open_private(token, world.key, protocol_id=5)
    private = open_private(token, world.key, protocol_id=world.protocol_id)
    private.require_server([world.home])
    with pytest.raises(WrongServer, match=r"192\.0\.2\.1:40000"):
        private.require_server([Address("192.0.2.1", 40001)])


def test_request_seen_on_the_wire_makes_no_token(world: World) -> None:
    """Who copies the private part out of a UDP request does not know the session keys, and a stream refuses him."""
    token = world.token()
    forged = msgspec.structs.replace(token, client_to_server_key=bytes(32))
    with pytest.raises(InvalidToken, match="session keys"):
        open_private(forged.encode(), world.key, protocol_id=world.protocol_id)


@given(st.binary(max_size=3000), st.sampled_from(Dialect))
def test_any_bytes_are_a_token_or_a_typed_error(data: bytes, dialect: Dialect) -> None:
    """All entrances of untrusted token bytes."""
    key = PrivateKey(SECRET)
    for read in (
        lambda: ConnectToken.decode(data, dialect),
        lambda: ConnectToken.from_base64(base64.b64encode(data).decode(), dialect),
        lambda: open_private(data, key, protocol_id=1, dialect=dialect, unix_now=0.0),
        lambda: open_request(data, key, protocol_id=1, dialect=dialect, unix_now=0.0),
    ):
        with pytest.raises(InvalidToken):
            read()


@given(st.data())
def test_no_flipped_bit_of_a_request_is_accepted(make_world: type[World], data: st.DataObject) -> None:
    """All 1078 bytes are either compared or authenticated."""
    world = make_world()
    packet = bytearray(world.token().request_packet())
    position = data.draw(st.integers(0, len(packet) * 8 - 1))
    packet[position // 8] ^= 1 << position % 8
    with pytest.raises(InvalidToken):
        open_request(bytes(packet), world.key, protocol_id=world.protocol_id, unix_now=world.clock)


@given(st.data())
def test_changed_token_opens_to_the_same_or_not_at_all(make_world: type[World], data: st.DataObject) -> None:
    """Whatever bytes of a whole token change, nobody becomes somebody else by it."""
    world = make_world()
    token = world.token(client_id=77)
    changed = bytearray(token.encode())
    for position in data.draw(st.lists(st.integers(0, 2047), min_size=1, max_size=4)):
        changed[position] ^= data.draw(st.integers(1, 255))
    try:
        private = open_private(bytes(changed), world.key, protocol_id=world.protocol_id, unix_now=world.clock)
    except InvalidToken:
        return
    assert private == open_private(token, world.key, protocol_id=world.protocol_id)
