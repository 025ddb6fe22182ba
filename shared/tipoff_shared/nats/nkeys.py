"""Signs NATS's JWTs with an account's nkey: Ed25519, in the text form of nats-server (`A...` public, `SA...` seed).

The text is base32 of a prefix, the 32 bytes and their CRC-16 (github.com/nats-io/nkeys). A JWT here has the algorithm
`ed25519-nkey`, and names its signer by the public key in `iss`.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Mapping

import msgspec
from nacl.signing import SigningKey

from tipoff_shared.errors import Malformed

_ACCOUNT = 0
_SEED = 18 << 3
_SEED_BYTES = 32


def _text(data: bytes) -> str:
    checked = data + binascii.crc_hqx(data, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


class AccountKey:
    """The key pair of one account. Its repr shows only the public key."""

    __slots__ = ("_signing", "public")

    def __init__(self, seed: bytes) -> None:
        self._signing = SigningKey(seed)
        self.public = _text(bytes([_ACCOUNT]) + bytes(self._signing.verify_key))
        """The public key as nats-server's configuration names it: `A...`."""

    @classmethod
    def generate(cls) -> AccountKey:
        """A new random key."""
        return cls(secrets.token_bytes(_SEED_BYTES))

    @classmethod
    def parse(cls, seed: str) -> AccountKey:
        """The key of a seed, `SA...`. Raises `Malformed`, which does not show it."""
        text = seed.strip()
        try:
            data = base64.b32decode(text + "=" * (-len(text) % 8))
        except (binascii.Error, ValueError):
            data = b""
        prefix = bytes([_SEED | _ACCOUNT >> 5, (_ACCOUNT & 31) << 3])
        body, crc = data[:-2], data[-2:]
        whole = len(body) == 2 + _SEED_BYTES and binascii.crc_hqx(body, 0).to_bytes(2, "little") == crc
        if not whole or body[:2] != prefix:
            raise Malformed(
                "not the seed of an account's nkey: 58 characters that begin with SA are expected"
            )
        return cls(body[2:])

    def seed(self) -> str:
        """The seed. The caller must not log or show it."""
        prefix = bytes([_SEED | _ACCOUNT >> 5, (_ACCOUNT & 31) << 3])
        return _text(prefix + bytes(self._signing))

    def sign(self, claims: Mapping[str, object], *, now: float | None = None) -> str:
        """A JWT with these claims, an id and the signer's name; issued at `now` (Unix seconds)."""
        whole = dict(claims) | {
            "jti": secrets.token_hex(16),
            "iat": int(time.time() if now is None else now),
            "iss": self.public,
        }
        signed = f"{_HEAD}.{_part(msgspec.json.encode(whole))}"
        return f"{signed}.{_part(self._signing.sign(signed.encode()).signature)}"

    def __repr__(self) -> str:
        return f"AccountKey({self.public})"

    def __reduce__(self) -> str:
        raise TypeError("an AccountKey is not serialised")


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def claims_of(jwt: bytes, *, longest: int) -> bytes:
    """The claims of a JWT as JSON. Its signature is not checked. Raises `Malformed`."""
    parts = jwt.split(b".")
    if len(jwt) > longest or len(parts) != 3:
        raise Malformed("not a JWT")
    try:
        return base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4))
    except (binascii.Error, ValueError) as exc:
        raise Malformed("not a JWT") from exc


_HEAD = _part(b'{"typ":"JWT","alg":"ed25519-nkey"}')
