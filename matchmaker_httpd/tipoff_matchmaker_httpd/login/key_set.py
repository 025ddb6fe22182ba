"""Reads the public keys of a JSON Web Key Set (RFC 7517) or a PEM file, each with the algorithms it may check.

Pure. A key checks only the algorithms of its own kind, so a token cannot choose: a public RSA key never becomes the
secret of an HMAC. Keys that cannot be used are left out; a set without any raises `UnusableKeys`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

MAX_KEYS = 64
"""Keys that are read of one set."""
MAX_KEY_SET = 256 * 1024
"""Bytes of the longest set."""
MAX_KID = 200
_LONGEST_MEMBER = 4096
_RSA_BITS = range(2048, 8193)
_RSA = frozenset(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_PUBLIC = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "OKP": ("crv", "x")}
"""Key type -> the members of its public part; a private part is not read."""
_WRONG = (jwt.PyJWTError, ValueError, TypeError, KeyError, OverflowError, UnsupportedAlgorithm)
"""What PyJWT and cryptography raise for keys that are none."""

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey | Ed448PublicKey


class UnusableKeys(Exception):
    """There is no key that could check a token. The text says why."""


@dataclass(frozen=True, slots=True)
class VerifyKey:
    """A public key. `kid`: its name in the set, "" where it has none."""

    kid: str
    algorithms: frozenset[str]
    key: PublicKey


def read_key_set(body: bytes) -> tuple[VerifyKey, ...]:
    """The usable keys in a JSON Web Key Set. Raises `UnusableKeys`."""
    if len(body) > MAX_KEY_SET:
        raise UnusableKeys(f"a key set is at most {MAX_KEY_SET} bytes")
    try:
        entries = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get("keys", msgspec.Raw(b"[]"))
        listed = msgspec.json.decode(entries, type=list[Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise UnusableKeys(f'not a key set like {{"keys": [...]}}: {exc}') from exc
    found = [key for entry in listed[:MAX_KEYS] if (key := _read_key(entry)) is not None]
    if not found:
        raise UnusableKeys(
            f"none of the {len(listed)} keys can check a token (RSA from 2048 bits, EC, Ed25519)"
        )
    return tuple(found)


def _read_key(entry: object) -> VerifyKey | None:
    if not isinstance(entry, dict) or entry.get("use", "sig") != "sig":
        return None
    kind, kid = entry.get("kty"), entry.get("kid", "")
    if not isinstance(kind, str) or not isinstance(kid, str) or len(kid) > MAX_KID:
        return None
    public: dict[str, Any] = {"kty": kind}
    for member in _PUBLIC.get(kind, ()):
        value = entry.get(member)
        if not isinstance(value, str) or len(value) > _LONGEST_MEMBER:
            return None
        public[member] = value
    try:
        key = _parse(kind, public)
    except _WRONG:
        return None
    algorithms = algorithms_of(key)
    if "alg" in entry:
        algorithms &= {entry["alg"]} if isinstance(entry["alg"], str) else frozenset()
    return VerifyKey(kid, algorithms, key) if algorithms and isinstance(key, PublicKey) else None


def _parse(kind: str, public: Mapping[str, Any]) -> object:
    match kind:
        case "RSA":
            return RSAAlgorithm.from_jwk(dict(public))
        case "EC":
            return ECAlgorithm.from_jwk(dict(public))
        case "OKP":
            return OKPAlgorithm.from_jwk(dict(public))
    raise ValueError(kind)


def algorithms_of(key: object) -> frozenset[str]:
    """The algorithms that a public key may check; none for one that is too weak, too large or of another kind."""
    if isinstance(key, RSAPublicKey):
        return _RSA if key.key_size in _RSA_BITS else frozenset()
    if isinstance(key, EllipticCurvePublicKey):
        return frozenset((_CURVES[key.curve.name],)) if key.curve.name in _CURVES else frozenset()
    return frozenset(("EdDSA",)) if isinstance(key, Ed25519PublicKey | Ed448PublicKey) else frozenset()


def read_pem(data: bytes) -> VerifyKey:
    """The public key in a PEM file, which has no name. Raises `UnusableKeys`."""
    try:
        key = load_pem_public_key(data)
    except _WRONG as exc:
        raise UnusableKeys("a public key in PEM (-----BEGIN PUBLIC KEY-----) is expected") from exc
    algorithms = algorithms_of(key)
    if not algorithms or not isinstance(key, PublicKey):
        raise UnusableKeys(
            "an RSA key from 2048 bits, an EC key on P-256, P-384 or P-521, or an Ed25519 key is expected"
        )
    return VerifyKey("", algorithms, key)


def choose_key(keys: Collection[VerifyKey], kid: str | None, algorithm: str) -> VerifyKey | None:
    """The key that checks a token of that header. Without a `kid` it is the only key of that algorithm."""
    fitting = [key for key in keys if algorithm in key.algorithms and (kid is None or key.kid == kid)]
    return fitting[0] if fitting and (kid is not None or len(fitting) == 1) else None
