"""Issues, encodes and opens connect tokens.

The matchmaker issues a token, the player carries it, and the gameserver opens it.

A token is 2048 bytes. Its public part tells the client whom to dial and holds the session keys **in clear**:
send it over TLS only and never log it. Its private part (1024 bytes, XChaCha20-Poly1305 under the private
key) identifies the player to the gameserver. The 16-byte tag of the private part is the token's identity. (netcode
1.02, "Connect Token".)
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import os
import struct
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as _decrypt,
)
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_encrypt as _encrypt,
)
from nacl.exceptions import CryptoError

from .addresses import Address, decode_addresses, encode_addresses
from .constants import (
    CONNECT_TOKEN_BYTES,
    KEY_BYTES,
    MAX_TOKEN_ADDRESSES,
    NEVER_EXPIRES,
    PRIVATE_BLOCK_BYTES,
    REQUEST,
    REQUEST_BYTES,
    TAG_BYTES,
    TOKEN_NONCE_BYTES,
    USER_DATA_BYTES,
    VERSION_INFO,
    Dialect,
)
from .errors import InvalidToken, InvalidTokenField, TokenExpired, WrongKey, WrongProtocol, WrongServer
from .keys import PrivateKey

_PUBLIC = struct.Struct("<13sQQQ24s1024si")
_PRIVATE = struct.Struct("<Qi")
_REQUEST = struct.Struct("<B13sQQ24s1024s")
_AAD = struct.Struct("<13sQQ")
_SEALED_BYTES = PRIVATE_BLOCK_BYTES - TAG_BYTES
_MAX_U64 = 2**64 - 1


class PrivateToken(msgspec.Struct, frozen=True, repr_omit_defaults=False):
    """The opened private part: what a gameserver learns about the player who dials it.

    `addresses` are those the server may be reached at; `user_data` is 256 bytes; `tag` (16 bytes) identifies
    the token for single use until `expire_timestamp` (Unix seconds). A `timeout_seconds` below 1 means no
    timeout.
    """

    client_id: int
    timeout_seconds: int
    addresses: tuple[Address, ...]
    client_to_server_key: bytes
    server_to_client_key: bytes
    user_data: bytes
    tag: bytes
    expire_timestamp: int

    def require_server(self, own: Collection[Address]) -> None:
        """Raise WrongServer unless the token names one of this server's addresses."""
        if not any(address in own for address in self.addresses):
            named = ", ".join(map(str, self.addresses[:4]))
            raise WrongServer(f"the token is for {named}, not for this server ({', '.join(map(str, own))})")

    def __repr__(self) -> str:
        return f"PrivateToken(client_id={self.client_id}, tag={self.tag.hex()[:12]}…, keys=**********)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # msgspec's own would show the keys
        return [("client_id", self.client_id), ("tag", self.tag.hex()[:12] + "…")]


class ConnectToken(msgspec.Struct, frozen=True):
    """The public token.

    `private_data` stays encrypted; `addresses` are dialled in order; times are Unix seconds.
    """

    protocol_id: int
    create_timestamp: int
    expire_timestamp: int
    nonce: bytes
    private_data: bytes
    timeout_seconds: int
    addresses: tuple[Address, ...]
    client_to_server_key: bytes
    server_to_client_key: bytes
    dialect: Dialect = Dialect.STANDARD

    def encode(self) -> bytes:
        """The 2048 bytes of the wire."""
        head = _PUBLIC.pack(
            VERSION_INFO,
            self.protocol_id,
            self.create_timestamp,
            self.expire_timestamp,
            self.nonce,
            self.private_data,
            self.timeout_seconds,
        )
        body = (
            encode_addresses(self.addresses, self.dialect)
            + self.client_to_server_key
            + self.server_to_client_key
        )
        return (head + body).ljust(CONNECT_TOKEN_BYTES, b"\x00")

    @classmethod
    def decode(cls, data: bytes, dialect: Dialect = Dialect.STANDARD) -> ConnectToken:
        """Read 2048 bytes as a client does: without checking the private part or the clock.

        Raises InvalidToken.
        """
        if len(data) != CONNECT_TOKEN_BYTES:
            raise InvalidToken(f"a connect token has {CONNECT_TOKEN_BYTES} bytes, not {len(data)}")
        version, protocol_id, create, expire, nonce, private_data, timeout = _PUBLIC.unpack_from(data)
        if version != VERSION_INFO:
            raise InvalidToken(
                "these bytes do not start with NETCODE 1.02, so they are no connect token of this version"
            )
        addresses, offset = decode_addresses(data, _PUBLIC.size, dialect)
        if create > expire:
            raise InvalidToken(f"the token expires ({expire}) before it was made ({create})")
        return cls(
            protocol_id=protocol_id,
            create_timestamp=create,
            expire_timestamp=expire,
            nonce=nonce,
            private_data=private_data,
            timeout_seconds=timeout,
            addresses=addresses,
            client_to_server_key=data[offset : offset + KEY_BYTES],
            server_to_client_key=data[offset + KEY_BYTES : offset + 2 * KEY_BYTES],
            dialect=dialect,
        )

    def to_base64(self) -> str:
        """Standard base64 with padding, 2732 characters: the text form in bevygap's and tipoff's messages."""
        return base64.b64encode(self.encode()).decode("ascii")

    @classmethod
    def from_base64(cls, text: str, dialect: Dialect = Dialect.STANDARD) -> ConnectToken:
        """Reverse of to_base64. Raises InvalidToken."""
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidToken("the token is not base64") from None
        return cls.decode(data, dialect)

    def request_packet(self) -> bytes:
        """The 1078-byte connection request a client sends for this token."""
        return _REQUEST.pack(
            REQUEST, VERSION_INFO, self.protocol_id, self.expire_timestamp, self.nonce, self.private_data
        )

    @property
    def tag(self) -> bytes:
        """The 16 bytes a server remembers used tokens by."""
        return self.private_data[-TAG_BYTES:]

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits for logs and tables; they are of no use to an attacker."""
        return self.tag.hex()[:12]

    def __repr__(self) -> str:
        addresses = ", ".join(map(str, self.addresses))
        return (
            f"ConnectToken(fingerprint={self.fingerprint}, protocol_id={self.protocol_id},"
            f" expires={self.expire_timestamp}, addresses=[{addresses}], keys=**********)"
        )

    def __rich_repr__(self) -> list[tuple[str, Any]]:  # msgspec's own would show the keys
        return [
            ("fingerprint", self.fingerprint),
            ("addresses", [str(address) for address in self.addresses]),
        ]


def issue_token(
    key: PrivateKey,
    *,
    protocol_id: int,
    client_id: int,
    public_addresses: Sequence[Address],
    internal_addresses: Sequence[Address] | None = None,
    user_data: bytes = b"",
    lifetime: float | None = 30,
    timeout: int = 15,
    now: float,
    dialect: Dialect = Dialect.STANDARD,
    random: Callable[[int], bytes] = os.urandom,
) -> ConnectToken:
    """Make a token for one player.

    `public_addresses` are dialled by the client in order; `internal_addresses` (the same by default) are
    those the server compares with its own. `user_data` is filled with zeros to 256 bytes. `lifetime` and
    `timeout` are seconds; None is a token that never expires, a timeout below 1 disables timeouts. `now` is
    Unix time. Raises InvalidTokenField.
    """
    public = tuple(public_addresses)
    internal = public if internal_addresses is None else tuple(internal_addresses)
    for name, addresses in (("public", public), ("internal", internal)):
        if not 1 <= len(addresses) <= MAX_TOKEN_ADDRESSES:
            raise InvalidTokenField(
                f"a token holds 1 to {MAX_TOKEN_ADDRESSES} {name} addresses, not {len(addresses)}"
            )
    if len(user_data) > USER_DATA_BYTES:
        raise InvalidTokenField(f"user data has {len(user_data)} bytes; a token holds {USER_DATA_BYTES}")
    if not 0 <= client_id <= _MAX_U64:
        raise InvalidTokenField(f"client id {client_id} is outside 0..2^64-1")
    if not 0 <= protocol_id <= _MAX_U64:
        raise InvalidTokenField(f"protocol id {protocol_id} is outside 0..2^64-1")
    if not -(2**31) <= timeout < 2**31:
        raise InvalidTokenField(f"a timeout of {timeout} s does not fit into 32 bits")
    if lifetime is not None and not 0 < lifetime < 2**62:
        raise InvalidTokenField(f"a lifetime of {lifetime} s is not positive; None means for ever")
    create = int(now)
    expire = NEVER_EXPIRES if lifetime is None else create + math.ceil(lifetime)
    nonce = random(TOKEN_NONCE_BYTES)
    client_to_server_key = random(KEY_BYTES)
    server_to_client_key = random(KEY_BYTES)
    block = (
        _PRIVATE.pack(client_id, timeout)
        + encode_addresses(internal, dialect)
        + client_to_server_key
        + server_to_client_key
        + user_data
    ).ljust(_SEALED_BYTES, b"\x00")
    aad = _AAD.pack(VERSION_INFO, protocol_id, expire)
    return ConnectToken(
        protocol_id=protocol_id,
        create_timestamp=create,
        expire_timestamp=expire,
        nonce=nonce,
        private_data=_encrypt(block, aad, nonce, key.reveal()),
        timeout_seconds=timeout,
        addresses=public,
        client_to_server_key=client_to_server_key,
        server_to_client_key=server_to_client_key,
        dialect=dialect,
    )


def open_private(
    token: bytes | ConnectToken,
    key: PrivateKey,
    *,
    protocol_id: int,
    dialect: Dialect = Dialect.STANDARD,
    unix_now: float | None = None,
) -> PrivateToken:
    """Check a whole token as a server does and open its private part.

    `token` is 2048 bytes or a ConnectToken. Expiry is judged only when `unix_now` (Unix seconds) is given.
    Raises InvalidToken or one of its kinds: WrongProtocol, TokenExpired, WrongKey. ``PrivateToken.require_server``
    checks which server the token names, ``UsedTokens`` whether it was used before.
    """
    if not isinstance(token, ConnectToken):
        token = ConnectToken.decode(token, dialect)
    private = _open(
        token.protocol_id,
        token.expire_timestamp,
        token.nonce,
        token.private_data,
        key,
        protocol_id,
        dialect,
        unix_now,
    )
    # The private part travels in clear in every UDP request, the session keys never do. Without this
    # comparison anyone who saw a request could wrap it into another token and present that over a stream.
    outside = token.client_to_server_key + token.server_to_client_key
    if not hmac.compare_digest(outside, private.client_to_server_key + private.server_to_client_key):
        raise InvalidToken(
            "the session keys outside and inside the token differ, so its bearer did not get it from us"
        )
    return private


def open_request(
    packet: bytes, key: PrivateKey, *, protocol_id: int, unix_now: float, dialect: Dialect = Dialect.STANDARD
) -> PrivateToken:
    """The same for a 1078-byte connection request packet. Raises InvalidToken or one of its kinds."""
    if len(packet) != REQUEST_BYTES:
        raise InvalidToken(f"a connection request has {REQUEST_BYTES} bytes, not {len(packet)}")
    kind, version, found_protocol, expire, nonce, private_data = _REQUEST.unpack(packet)
    if kind != REQUEST or version != VERSION_INFO:
        raise InvalidToken("this is no connection request of NETCODE 1.02")
    return _open(found_protocol, expire, nonce, private_data, key, protocol_id, dialect, unix_now)


def _open(
    found_protocol: int,
    expire: int,
    nonce: bytes,
    private_data: bytes,
    key: PrivateKey,
    protocol_id: int,
    dialect: Dialect,
    unix_now: float | None,
) -> PrivateToken:
    """The checks in the standard's order: all that cost nothing first, decryption last."""
    if found_protocol != protocol_id:
        raise WrongProtocol(protocol_id, found_protocol)
    if unix_now is not None and expire <= unix_now:
        raise TokenExpired(expire, unix_now)
    try:
        block = _decrypt(private_data, _AAD.pack(VERSION_INFO, protocol_id, expire), nonce, key.reveal())
    except CryptoError:
        raise WrongKey from None
    client_id, timeout = _PRIVATE.unpack_from(block)
    addresses, offset = decode_addresses(block, _PRIVATE.size, dialect)
    keys_end = offset + 2 * KEY_BYTES
    return PrivateToken(
        client_id=client_id,
        timeout_seconds=timeout,
        addresses=addresses,
        client_to_server_key=block[offset : offset + KEY_BYTES],
        server_to_client_key=block[offset + KEY_BYTES : keys_end],
        user_data=block[keys_end : keys_end + USER_DATA_BYTES],
        tag=private_data[-TAG_BYTES:],
        expire_timestamp=expire,
    )
