"""The user data in tipoff's connect tokens (256 bytes), so that a game server admits players without a network call.

Layout (little-endian): 4 bytes `TPF1` | u32 generation | five strings, each u8 length and UTF-8 bytes:
session id, deployment id, boot id, user id, name of the player | u16 seconds for which the seat is held after a lost
connection | zeros. The last two strings are "" without a login and without a name; servers of an earlier release read
four or five strings, and tokens of an earlier matchmaker have zeros for what follows. It is authenticated by the key
that encrypts the token's private part. All zeros: the token is bevygap's.

With ids of 27, 63 and 16 bytes, a user id of 64 and a name of 48, 233 of the 256 bytes are used.
"""

from __future__ import annotations

import struct

import msgspec

MAGIC = b"TPF1"
SIZE = 256


class TokenUserData(msgspec.Struct, frozen=True):
    """`generation` counts the seats a session has had; a game server refuses an older one than it has seen. `user_id`
    is the login's, `name` what the login or the player itself says. `resume_ttl`: seconds for which the seat is held
    after a lost connection, 0: not at all."""

    session_id: str
    deployment_id: str
    boot_id: str
    generation: int = 0
    user_id: str = ""
    name: str = ""
    resume_ttl: int = 0

    def encode(self) -> bytes:
        """Exactly 256 bytes; raises `ValueError` when the strings do not fit."""
        parts = [MAGIC, struct.pack("<I", self.generation)]
        for text in (self.session_id, self.deployment_id, self.boot_id, self.user_id, self.name):
            raw = text.encode()
            if len(raw) > 255:
                raise ValueError("a string of the token's user data is over 255 bytes")
            parts.append(bytes((len(raw),)) + raw)
        parts.append(struct.pack("<H", self.resume_ttl))
        data = b"".join(parts)
        if len(data) > SIZE:
            raise ValueError("the token's user data is over 256 bytes")
        return data.ljust(SIZE, b"\0")


def decode_user_data(data: bytes) -> TokenUserData | None:
    """The content, or None for zeros (a token of bevygap's); raises `ValueError` for anything else."""
    if not any(data):
        return None
    if len(data) != SIZE or data[:4] != MAGIC:
        raise ValueError("user data of another kind")
    (generation,) = struct.unpack_from("<I", data, 4)
    strings: list[str] = []
    at = 8
    for _ in range(5):
        if len(strings) == 4 and at == SIZE:
            strings.append("")  # an earlier matchmaker's, full to the last byte
            break
        if at >= SIZE or at + 1 + data[at] > SIZE:
            raise ValueError("user data cut short")
        end = at + 1 + data[at]
        strings.append(data[at + 1 : end].decode())
        at = end
    resume_ttl = struct.unpack_from("<H", data, at)[0] if at + 2 <= SIZE else 0
    return TokenUserData(strings[0], strings[1], strings[2], generation, strings[3], strings[4], resume_ttl)
