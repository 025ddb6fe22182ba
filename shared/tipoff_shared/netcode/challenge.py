"""Issues and opens challenge tokens, by which a client proves that it receives at its address."""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag

from .constants import CHALLENGE_TOKEN_BYTES, TAG_BYTES, USER_DATA_BYTES
from .packet import cipher, nonce

_PLAIN = struct.Struct("<Q256s")
_SEQUENCE = struct.Struct("<Q")
_SEALED_BYTES = CHALLENGE_TOKEN_BYTES - TAG_BYTES


class ChallengeTokens:
    """Issues and recognises this server's own challenges.

    `key` is 32 random bytes made at server start and known to nobody else, so the sequence may begin at 0
    each time.
    """

    __slots__ = ("_cipher", "sequence")

    def __init__(self, key: bytes) -> None:
        self._cipher = cipher(key)
        self.sequence = 0

    def issue(self, client_id: int, user_data: bytes) -> bytes:
        """The 308-byte body of a challenge packet."""
        sequence = self.sequence
        self.sequence += 1
        plain = _PLAIN.pack(client_id, user_data).ljust(_SEALED_BYTES, b"\x00")
        return _SEQUENCE.pack(sequence) + self._cipher.encrypt(nonce(sequence), plain, None)

    def open(self, body: bytes) -> tuple[int, bytes] | None:
        """Client id and user data of a 308-byte response body, or None when this server did not issue it."""
        (sequence,) = _SEQUENCE.unpack_from(body)
        try:
            plain = self._cipher.decrypt(nonce(sequence), body[_SEQUENCE.size :], None)
        except InvalidTag:
            return None
        client_id, user_data = _PLAIN.unpack_from(plain)
        return client_id, user_data


assert _PLAIN.size == 8 + USER_DATA_BYTES
