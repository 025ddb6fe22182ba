"""Defines the private key that the matchmaker and its gameservers share; only an explicit call reveals it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

from .constants import KEY_BYTES
from .errors import InvalidKey


class PrivateKey:
    """32 secret bytes.

    ``str``, ``repr`` and rich show a mask, pickling is refused; ``reveal()`` is the only way to the bytes.
    All zeros, the default of lightyear and bevygap, is refused unless `allow_zero` is set. Raises InvalidKey.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes, *, allow_zero: bool = False) -> None:
        if len(secret) != KEY_BYTES:
            raise InvalidKey(f"a private key has {KEY_BYTES} bytes, not {len(secret)}")
        if not allow_zero and not any(secret):
            raise InvalidKey("the private key is all zeros, so anybody could sign tokens; generate one")
        self._secret: Final = bytes(secret)

    @classmethod
    def parse(cls, text: str, *, allow_zero: bool = False) -> PrivateKey:
        """Read 64 hex digits, or 32 decimal numbers with commas between (bevygap's form)."""
        text = text.strip()
        if "," in text:
            numbers = text.removeprefix("[").removesuffix("]").rstrip(", ").split(",")
            try:
                secret = bytes(int(number) for number in numbers)
            except ValueError:
                # `from None`: the cause would carry a part of the key in its message.
                raise InvalidKey(
                    "a private key in decimal form is 32 numbers of 0..255 with commas between"
                ) from None
        else:
            try:
                secret = bytes.fromhex(text)
            except ValueError:
                raise InvalidKey(
                    "a private key is 64 hex digits, or 32 decimal numbers with commas between"
                ) from None
        return cls(secret, allow_zero=allow_zero)

    @classmethod
    def generate(cls, random: Callable[[int], bytes] = os.urandom) -> PrivateKey:
        """A random key."""
        return cls(random(KEY_BYTES))

    def of_deployment(self, deployment_id: str) -> PrivateKey:
        """The key of one deployment, from this key of its game: keyed BLAKE2b of the deployment's id. It leads neither
        back to the game's key nor to another deployment's, so its server can open and forge only its own tokens."""
        digest = hashlib.blake2b(
            deployment_id.encode(), key=self._secret, digest_size=KEY_BYTES, person=b"tipoff netcode"
        )
        return PrivateKey(digest.digest())

    def resume_key(self, session_id: str) -> str:
        """What proves that a session is one's own: 22 letters and digits, a secret of the session's player. It leads
        neither back to this key nor to another session's."""
        digest = hashlib.blake2b(
            session_id.encode(), key=self._secret, digest_size=16, person=b"tipoff resume"
        )
        return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()

    def reveal(self) -> bytes:
        """The 32 bytes. The caller must not log or show them."""
        return self._secret

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits to compare keys by, from which the key cannot be computed."""
        return hashlib.sha256(b"tipoff private key" + self._secret).hexdigest()[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PrivateKey) and hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self._secret)

    def __repr__(self) -> str:
        return "PrivateKey(**********)"

    def __rich_repr__(self) -> Iterator[str]:
        yield "**********"

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a PrivateKey is not pickled; hand its bytes over explicitly with reveal()")
