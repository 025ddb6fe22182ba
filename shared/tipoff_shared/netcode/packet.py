"""Seals and opens encrypted packets: ``prefix | sequence | ciphertext | tag``.

The prefix byte holds the type (low half) and the number of sequence bytes (high half, 1..8); the sequence
number is the nonce; version, protocol id and prefix are authenticated with it. Everything that depends only on
the prefix comes from a table that is made once, so that a bad datagram is dropped by one dictionary
lookup and two comparisons.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from .constants import (
    CHALLENGE,
    CHALLENGE_TOKEN_BYTES,
    DENIED,
    DISCONNECT,
    FRAME,
    FRAMING_WIDTH,
    KEEP_ALIVE,
    MAX_DATAGRAM_BYTES,
    MAX_PAYLOAD_BYTES,
    MIN_ENCRYPTED_BYTES,
    PAYLOAD,
    RESPONSE,
    TAG_BYTES,
    VERSION_INFO,
    Dialect,
)
from .replay import ReplayWindow

Encrypt = Callable[[bytes, bytes, bytes | None], bytes]
Decrypt = Callable[[bytes, bytes, bytes | None], bytes]

nonce = struct.Struct("<4xQ").pack
"""The 12-byte nonce of a sequence number."""

_AAD = struct.Struct("<13sQB")
_CHALLENGE_BODY = 8 + CHALLENGE_TOKEN_BYTES
_BODY_BYTES = {
    DENIED: (0, 0),
    CHALLENGE: (_CHALLENGE_BODY, _CHALLENGE_BODY),
    RESPONSE: (_CHALLENGE_BODY, _CHALLENGE_BODY),
    KEEP_ALIVE: (8, 8),
    PAYLOAD: (1, MAX_PAYLOAD_BYTES),
    DISCONNECT: (0, 0),
    FRAME: (1, MAX_PAYLOAD_BYTES),
}
_LIGHTYEAR_DENIED_BYTES = (
    0,
    2 + 255,
)  # reason, and with reason 6 a length byte and text; empty from a standard server
TO_SERVER = frozenset({RESPONSE, KEEP_ALIVE, PAYLOAD, DISCONNECT})
TO_CLIENT = frozenset({DENIED, CHALLENGE, KEEP_ALIVE, PAYLOAD, DISCONNECT})
FRAMED = frozenset({KEEP_ALIVE, PAYLOAD, DISCONNECT, FRAME})
"""What either side of a framed connection sends once it is connected, besides repeated responses."""


class PacketWriter:
    """Seals packets of one protocol id.

    The caller counts: a sequence number must never repeat under one key.
    """

    __slots__ = ("_headers",)

    def __init__(self, protocol_id: int) -> None:
        # [type][sequence bytes] -> prefix byte, associated data
        self._headers = [
            [_header(protocol_id, kind | width << 4) for width in range(9)] for kind in range(FRAME + 1)
        ]

    def write(self, encrypt: Encrypt, kind: int, sequence: int, body: bytes) -> bytes:
        """One datagram. `encrypt` is the bound method of the one cipher object of this direction's key."""
        width = (sequence.bit_length() + 7) >> 3 or 1
        prefix, aad = self._headers[kind][width]
        return prefix + sequence.to_bytes(width, "little") + encrypt(nonce(sequence), body, aad)

    def write_wide(self, encrypt: Encrypt, kind: int, sequence: int, body: bytes) -> bytes:
        """As `write`, with `FRAMING_WIDTH` bytes for the sequence number."""
        prefix, aad = self._headers[kind][FRAMING_WIDTH]
        return prefix + sequence.to_bytes(FRAMING_WIDTH, "little") + encrypt(nonce(sequence), body, aad)


class PacketReader:
    """Opens packets of one protocol id that go in one direction: `kinds` is TO_SERVER or TO_CLIENT, or FRAMED."""

    __slots__ = ("_rules",)

    def __init__(self, protocol_id: int, kinds: frozenset[int], dialect: Dialect = Dialect.STANDARD) -> None:
        # prefix -> type, where the ciphertext begins, smallest and largest datagram, associated data
        self._rules: dict[int, tuple[int, int, int, int, bytes]] = {}
        for kind in kinds:
            smallest, largest = _BODY_BYTES[kind]
            if kind == DENIED and dialect is Dialect.LIGHTYEAR:
                smallest, largest = _LIGHTYEAR_DENIED_BYTES
            for width in range(1, 9):
                prefix, aad = _header(protocol_id, kind | width << 4)
                frame = 1 + width + TAG_BYTES
                self._rules[prefix[0]] = (kind, 1 + width, smallest + frame, largest + frame, aad)

    def read(
        self, packet: bytes, decrypt: Decrypt, window: ReplayWindow | None
    ) -> tuple[int, int, bytes] | None:
        """Type, sequence number and body of an authentic packet that was not seen before, else None.

        `window` filters keep-alives, payloads, disconnects and frames; None filters nothing (a sender without a
        connection).
        """
        size = len(packet)
        if not MIN_ENCRYPTED_BYTES <= size <= MAX_DATAGRAM_BYTES:
            return None
        rule = self._rules.get(packet[0])
        if rule is None:
            return None
        kind, start, smallest, largest, aad = rule
        if not smallest <= size <= largest:
            return None
        sequence = int.from_bytes(packet[1:start], "little")
        filtered = window is not None and kind >= KEEP_ALIVE
        if filtered and window.seen(sequence):  # type: ignore[union-attr]  # `filtered` says it is not None
            return None
        try:
            body = decrypt(nonce(sequence), packet[start:], aad)
        except InvalidTag:
            return None
        if filtered:
            window.accept(sequence)  # type: ignore[union-attr]  # `filtered` says it is not None
        return kind, sequence, body


def cipher(key: bytes) -> ChaCha20Poly1305:
    """One object per key, made once: 0.9 µs a packet, against 3 µs through a function that takes the key."""
    return ChaCha20Poly1305(key)


def _header(protocol_id: int, prefix: int) -> tuple[bytes, bytes]:
    return bytes((prefix,)), _AAD.pack(VERSION_INFO, protocol_id, prefix)
