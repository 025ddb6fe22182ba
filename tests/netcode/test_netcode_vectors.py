"""Every entry of vectors.json, made with the reference implementation, against our readers and writers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tipoff_shared.netcode import (
    Address,
    ConnectToken,
    Dialect,
    InvalidAddress,
    InvalidToken,
    PrivateKey,
    TokenExpired,
    issue_token,
    open_private,
    open_request,
)
from tipoff_shared.netcode.addresses import encode_addresses
from tipoff_shared.netcode.challenge import ChallengeTokens
from tipoff_shared.netcode.packet import TO_CLIENT, TO_SERVER, PacketReader, PacketWriter, cipher, nonce
from tipoff_shared.netcode.replay import ReplayWindow

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "vectors.json").read_text(encoding="utf-8")
)
NEVER = 2**64 - 1


def entries(group: str, name: str = "name") -> Any:
    return pytest.mark.parametrize("entry", VECTORS[group], ids=lambda entry: str(entry[name]))


def keep_alive() -> dict[str, Any]:
    return next(entry for entry in VECTORS["packets"] if entry["name"] == "keep_alive_server")


def key_of(entry: dict[str, Any]) -> PrivateKey:
    return PrivateKey(bytes.fromhex(entry["private_key"]), allow_zero=True)


def fixed_random(*values: str) -> Any:
    left: Iterator[bytes] = iter([bytes.fromhex(value) for value in values])

    def random(size: int) -> bytes:
        value = next(left)
        assert len(value) == size
        return value

    return random


def issue(entry: dict[str, Any]) -> ConnectToken:
    lifetime = (
        None if entry["expire_timestamp"] == NEVER else entry["expire_timestamp"] - entry["create_timestamp"]
    )
    return issue_token(
        key_of(entry),
        protocol_id=entry["protocol_id"],
        client_id=entry["client_id"],
        public_addresses=[Address.parse(text) for text in entry["public_addresses"]],
        internal_addresses=[Address.parse(text) for text in entry["internal_addresses"]],
        user_data=bytes.fromhex(entry["user_data"]),
        lifetime=lifetime,
        timeout=entry["timeout_seconds"],
        now=entry["create_timestamp"] + 0.75,
        random=fixed_random(entry["nonce"], entry["client_to_server_key"], entry["server_to_client_key"]),
    )


@entries("tokens")
def test_issued_token_has_the_reference_s_bytes(entry: dict[str, Any]) -> None:
    """Public token, its base64, private part and request packet, from the same inputs."""
    token = issue(entry)
    assert token.encode().hex() == entry["connect_token"]
    assert token.to_base64() == entry["connect_token_base64"]
    assert token.private_data.hex() == entry["private_encrypted"]
    assert token.tag.hex() == entry["private_hmac"]
    assert token.request_packet().hex() == entry["connection_request_packet"]


@entries("tokens")
def test_public_token_is_read_back(entry: dict[str, Any]) -> None:
    """Decoding gives the fields, encoding them gives the bytes."""
    data = bytes.fromhex(entry["connect_token"])
    token = ConnectToken.decode(data)
    assert token.protocol_id == entry["protocol_id"]
    assert token.create_timestamp == entry["create_timestamp"]
    assert token.expire_timestamp == entry["expire_timestamp"]
    assert token.timeout_seconds == entry["timeout_seconds"]
    assert token.addresses == tuple(Address.parse(text) for text in entry["public_addresses"])
    assert token.client_to_server_key.hex() == entry["client_to_server_key"]
    assert token.server_to_client_key.hex() == entry["server_to_client_key"]
    assert token.encode() == data
    assert ConnectToken.from_base64(entry["connect_token_base64"]) == token


@entries("tokens")
def test_private_part_opens(entry: dict[str, Any]) -> None:
    """From the whole token and from the request packet alike."""
    key = key_of(entry)
    private = open_private(bytes.fromhex(entry["connect_token"]), key, protocol_id=entry["protocol_id"])
    assert private.client_id == entry["client_id"]
    assert private.timeout_seconds == entry["timeout_seconds"]
    assert private.addresses == tuple(Address.parse(text) for text in entry["internal_addresses"])
    assert private.client_to_server_key.hex() == entry["client_to_server_key"]
    assert private.server_to_client_key.hex() == entry["server_to_client_key"]
    assert private.user_data.hex() == entry["user_data"]
    assert private.tag.hex() == entry["private_hmac"]
    packet = bytes.fromhex(entry["connection_request_packet"])
    opened = open_request(packet, key, protocol_id=entry["protocol_id"], unix_now=entry["create_timestamp"])
    assert opened == private


@entries("challenge_tokens", "sequence")
def test_challenge_token_has_the_reference_s_bytes(entry: dict[str, Any]) -> None:
    """Issued with its number, and opened again."""
    challenges = ChallengeTokens(bytes.fromhex(entry["key"]))
    challenges.sequence = entry["sequence"]
    body = challenges.issue(entry["client_id"], bytes.fromhex(entry["user_data"]))
    assert body == entry["sequence"].to_bytes(8, "little") + bytes.fromhex(entry["encrypted"])
    assert challenges.open(body) == (entry["client_id"], bytes.fromhex(entry["user_data"]))
    assert nonce(entry["sequence"]).hex() == entry["nonce"]


@entries("packets")
def test_packet_has_the_reference_s_bytes(entry: dict[str, Any]) -> None:
    """Sealed and opened with the case's key, number and protocol id."""
    aead = cipher(bytes.fromhex(entry["key"]))
    body = bytes.fromhex(entry["body"])
    packet = PacketWriter(entry["protocol_id"]).write(aead.encrypt, entry["type"], entry["sequence"], body)
    assert packet.hex() == entry["packet"]
    assert len(packet) == entry["length"]
    reader = PacketReader(entry["protocol_id"], TO_SERVER | TO_CLIENT)
    assert reader.read(packet, aead.decrypt, ReplayWindow()) == (entry["type"], entry["sequence"], body)


@entries("sequence_encodings", "sequence")
def test_sequence_number_takes_as_few_bytes_as_it_can(entry: dict[str, Any]) -> None:
    """The keep-alive with this number is the reference's to the byte."""
    model = keep_alive()
    aead = cipher(bytes.fromhex(model["key"]))
    packet = PacketWriter(model["protocol_id"]).write(
        aead.encrypt, 4, entry["sequence"], bytes.fromhex(model["body"])
    )
    assert packet.hex() == entry["keep_alive_packet"]
    assert packet[0] == entry["keep_alive_prefix_byte"]
    assert packet[1 : 1 + entry["byte_count"]].hex() == entry["sequence_bytes"]


@entries("packet_reading")
def test_packet_is_taken_or_dropped_as_by_the_reference(entry: dict[str, Any]) -> None:
    """Including packets that only one side may receive."""
    kinds = {"any": TO_SERVER | TO_CLIENT, "server": TO_SERVER, "client": TO_CLIENT}[entry["side"]]
    decrypt = cipher(bytes.fromhex(entry["key"])).decrypt
    packet = PacketReader(entry["protocol_id"], kinds).read(bytes.fromhex(entry["packet"]), decrypt, None)
    expected = (entry["type"], entry["sequence"], bytes.fromhex(entry["body"])) if entry["accepted"] else None
    assert packet == expected


@entries("connection_requests")
def test_connection_request_opens_or_not_as_by_the_reference(entry: dict[str, Any]) -> None:
    """Everything unreadable is one typed error."""

    def read() -> None:
        open_request(
            bytes.fromhex(entry["packet"]),
            key_of(entry),
            protocol_id=entry["protocol_id"],
            unix_now=entry["server_time"],
        )

    if entry["token_readable"]:
        read()
        return
    with pytest.raises(InvalidToken) as error:
        read()
    assert isinstance(error.value, TokenExpired) == ("expiry" in entry["name"])


@entries("token_reading")
def test_client_takes_or_refuses_a_token_as_the_reference_does(entry: dict[str, Any]) -> None:
    """Padding is not looked at; everything else must be in order."""
    data = bytes.fromhex(entry["connect_token"])
    if entry["valid"]:
        ConnectToken.decode(data)
    else:
        with pytest.raises(InvalidToken):
            ConnectToken.decode(data)


@entries("replay_protection")
def test_replay_window_takes_each_number_once(entry: dict[str, Any]) -> None:
    """As the reference, but for its flaw with 2^64-1, where we are stricter."""
    window = ReplayWindow()
    for step in entry["steps"]:
        ignored = window.seen(step["sequence"])
        if step.get("reference_flaw"):
            assert ignored
            continue
        assert ignored == step["ignored"], step
        if not ignored:
            window.accept(step["sequence"])


LENIENT = {"[::1", "[1.2.3.4]:5"}  # quirks of the reference's text parser that we refuse


@entries("addresses", "text")
def test_address_text_is_read_as_by_the_reference(entry: dict[str, Any]) -> None:
    """A missing port, which the reference reads as 0, must be asked for."""
    if not entry["valid"] or entry["text"] in LENIENT:
        with pytest.raises(InvalidAddress):
            Address.parse(entry["text"], default_port=0)
        return
    address = Address.parse(entry["text"], default_port=0)
    assert encode_addresses((address,), Dialect.STANDARD)[4:].hex() == entry["token_bytes"]
    if address.port:
        shown = str(address)
        if "::ffff:" in shown:  # Pythons and C libraries write the last half of a mapped address either way
            assert Address.parse(shown) == Address.parse(entry["canonical"])
        else:
            assert shown == entry["canonical"]
