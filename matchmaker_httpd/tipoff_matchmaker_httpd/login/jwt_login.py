"""Checks logins that are JSON Web Tokens (RFC 7519), with the best current practices of RFC 8725.

The algorithm must be on the operator's list and of the key's own kind; a token brings no key and no URL of one (`jwk`,
`jku`, `x5u` are ignored), and no extension that must be understood (`crit`). Issuer, audience and expiry are required.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jwt
import msgspec

from tipoff_matchmaker_httpd.login.interface import MAX_CREDENTIAL, Identity, failed, identity_of, missing
from tipoff_matchmaker_httpd.login.key_set import (
    MAX_KID,
    PublicKey,
    UnusableKeys,
    VerifyKey,
    choose_key,
    read_pem,
)
from tipoff_shared.admission.client_address import Address
from tipoff_shared.errors import ConfigError, LoginReason, Malformed
from tipoff_shared.secret import Secret

MAX_KEY_FILE = 64 * 1024
SHORTEST_SECRET = 32
"""Bytes: as many as the shortest hash has (RFC 7518, 3.2)."""
LEEWAY = 30.0
"""Seconds by which the issuer's clock may differ."""

_OTHER_ISSUER = (
    "the login token is of another issuer; log in at the one that this server's operator has chosen"
)


@dataclass(frozen=True, slots=True)
class JwtRules:
    """What a token must say, and which of its claims are the player's."""

    issuer: str
    audiences: tuple[str, ...]
    algorithms: tuple[str, ...]
    user_claim: str = "sub"
    name_claim: str = "name"


@dataclass(frozen=True, slots=True)
class TokenHeader:
    """The part of a token's header that counts. `kid` None: it names no key."""

    algorithm: str
    kid: str | None


class KeySource(Protocol):
    """Where the key of a token comes from."""

    async def key(self, kid: str | None, algorithm: str) -> VerifyKey:
        """Raises `NotAuthenticated` when there is none, `Unavailable` while that is not known."""
        ...


class OneKey:
    """The key of a file."""

    def __init__(self, key: VerifyKey) -> None:
        self._keys = (key,)

    async def key(self, kid: str | None, algorithm: str) -> VerifyKey:
        """The key, whatever a token calls it."""
        found = choose_key(self._keys, None, algorithm)
        if found is None:
            raise failed(LoginReason.ALGORITHM, f"{algorithm} is not the algorithm of this server's key")
        return found


def read_key_file(path: Path, algorithms: tuple[str, ...]) -> OneKey | Secret:
    """The key in a file: a secret for HS256, HS384 and HS512, else a public key in PEM. Raises `ConfigError`."""
    where = f"TIPOFF_HTTPD_AUTH_KEY_FILE={path}"
    try:
        data = path.read_bytes()[:MAX_KEY_FILE]
    except OSError as exc:
        raise ConfigError(f"{where}: {exc.strerror or exc}") from exc
    if not all(name.startswith("HS") for name in algorithms):
        try:
            key = read_pem(data)
        except UnusableKeys as exc:
            raise ConfigError(f"{where}: {exc}") from exc
        if not key.algorithms & set(algorithms):
            allowed = ", ".join(sorted(key.algorithms))
            raise ConfigError(f"{where} is for {allowed}; TIPOFF_HTTPD_AUTH_ALGORITHMS has none of them")
        return OneKey(key)
    try:
        secret = data.decode().strip()
    except UnicodeDecodeError as exc:
        raise ConfigError(
            f"{where}: a secret text is expected, such as of `openssl rand -base64 48`"
        ) from exc
    if "-----BEGIN" in secret or len(secret.encode()) < SHORTEST_SECRET:
        raise ConfigError(
            f"{where}: for HS256 a secret of at least {SHORTEST_SECRET} bytes is expected, no public key; "
            "`openssl rand -base64 48` makes one"
        )
    return Secret(secret)


class JwtLogin:
    """The login of `TIPOFF_HTTPD_AUTH=jwt`. `keys`: a key source, or the secret of an HMAC."""

    def __init__(self, rules: JwtRules, keys: KeySource | Secret) -> None:
        self._rules = rules
        self._keys = keys

    async def identify(self, auth: Mapping[str, Any] | None, address: Address) -> Identity:
        """As `Login.identify`. A token that is checked costs the issuer nothing, so no address has a share of it."""
        token = token_in(auth)
        header = read_header(token, self._rules.algorithms)
        if isinstance(self._keys, Secret):
            return verify(token, header, self._keys.reveal(), self._rules)
        key = await self._keys.key(header.kid, header.algorithm)
        return verify(token, header, key.key, self._rules)


def token_in(auth: Mapping[str, Any] | None) -> str:
    """The token in the `auth` of a request. Raises `NotAuthenticated`."""
    if not auth:
        raise missing()
    token = auth.get("token")
    if not isinstance(token, str) or not token.isascii() or not 0 < len(token) <= MAX_CREDENTIAL:
        raise failed(LoginReason.MALFORMED, 'write the login token as "auth": {"token": "..."}')
    return token


def read_header(token: str, algorithms: tuple[str, ...]) -> TokenHeader:
    """The header of a token, before anything of it is trusted. Raises `NotAuthenticated`."""
    parts = token.split(".")
    try:
        if len(parts) != 3:
            raise ValueError
        raw = urlsafe_b64decode(parts[0] + "=" * (-len(parts[0]) % 4))
        members = msgspec.json.decode(raw, type=dict[str, Any])
    except (ValueError, binascii.Error, msgspec.DecodeError, RecursionError) as exc:
        text = "the login token is no JSON Web Token of three parts; send the one that your login gave you"
        raise failed(LoginReason.MALFORMED, text) from exc
    algorithm, kid = members.get("alg"), members.get("kid")
    if not isinstance(algorithm, str) or algorithm not in algorithms:
        text = f"the login token is signed by an algorithm other than {', '.join(algorithms)}"
        raise failed(LoginReason.ALGORITHM, text)
    if "crit" in members or not isinstance(kid, str | None) or (kid is not None and len(kid) > MAX_KID):
        raise failed(
            LoginReason.MALFORMED, "the login token's header is of a kind that this server does not read"
        )
    return TokenHeader(algorithm, kid)


def verify(token: str, header: TokenHeader, key: PublicKey | str, rules: JwtRules) -> Identity:
    """Who a token speaks of, once its signature and its claims are checked. Raises `NotAuthenticated`."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[header.algorithm],
            issuer=rules.issuer,
            audience=list(rules.audiences),
            leeway=LEEWAY,
            options={"require": ["exp", "iss", "aud"], "verify_sub": False, "verify_jti": False},
        )
    except jwt.ExpiredSignatureError as exc:
        raise failed(LoginReason.EXPIRED, "the login token has expired; log in again") from exc
    except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError) as exc:
        text = "the login token is of a later time; are the clocks of the issuer and this server right?"
        raise failed(LoginReason.NOT_YET_VALID, text) from exc
    except jwt.InvalidIssuerError as exc:
        raise failed(LoginReason.ISSUER, _OTHER_ISSUER) from exc
    except jwt.InvalidAudienceError as exc:
        text = "the login token is for another audience; ask your login for one for this server"
        raise failed(LoginReason.AUDIENCE, text) from exc
    except jwt.MissingRequiredClaimError as exc:
        reason = {"iss": LoginReason.ISSUER, "aud": LoginReason.AUDIENCE}.get(
            exc.claim, LoginReason.MALFORMED
        )
        raise failed(reason, f"the login token has no claim {exc.claim}") from exc
    except jwt.InvalidSignatureError as exc:
        raise failed(LoginReason.SIGNATURE, "the login token's signature is wrong; log in again") from exc
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as exc:
        raise failed(LoginReason.MALFORMED, "the login token cannot be read; log in again") from exc
    if claims["iss"] != rules.issuer:  # PyJWT 2.10.0 took a part of the issuer for all of it (CVE-2024-53861)
        raise failed(LoginReason.ISSUER, _OTHER_ISSUER)
    try:
        return identity_of(claims.get(rules.user_claim), claims.get(rules.name_claim))
    except Malformed as exc:
        text = f"the login token's claim {rules.user_claim!r}: {exc}; its operator chooses another claim"
        raise failed(LoginReason.USER_ID, text) from exc
