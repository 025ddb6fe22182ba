"""Decides who a game server of the isolated profile is on NATS, and what it may do there. Pure.

nats-server asks a matchmaker about every user that its configuration does not know (auth callout): a request comes as a
JWT of nats-server, the answer is one of the account in whose name matchmakers sign. The user of a deployment is
`gs-<deployment id>`, its password follows from the secret that matchmakers share; it may publish its own events, and
hear its own commands and answers.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from tipoff_shared.errors import Malformed
from tipoff_shared.nats.nkeys import AccountKey, claims_of
from tipoff_shared.secret import Secret
from tipoff_shared.settings import server_inbox_prefix, server_user
from tipoff_shared.subjects import Subjects

ACCOUNT = "GAMESERVERS"
"""The account of the servers in nats-server's configuration; a test compares it with the one that is written there."""

_LONGEST = 256 * 1024
_AUDIENCE = "nats-authorization-request"
_USER_KEY = re.compile(r"U[A-Z2-7]{55}", re.ASCII)
_SERVER_KEY = re.compile(r"N[A-Z2-7]{55}", re.ASCII)
_USER = re.compile(r"gs-([a-z0-9][a-z0-9-]{0,62})", re.ASCII)


@dataclass(frozen=True, slots=True)
class AuthRequest:
    """Who wants to connect. `user_key` and `server_id` name the connection and the nats-server in the answer."""

    server_id: str
    user_key: str
    user: str
    password: str = field(repr=False)
    host: str

    @property
    def deployment_id(self) -> str | None:
        """The deployment whose user this is; None for any other user."""
        return deployment_of(self.user)

    def has_password(self, password: Secret) -> bool:
        """Whether it shows this password."""
        return hmac.compare_digest(self.password.encode(errors="replace"), password.reveal().encode())


class _ServerId(msgspec.Struct):
    id: str


class _Options(msgspec.Struct, rename={"password": "pass"}):
    user: str = ""
    password: str = ""


class _Client(msgspec.Struct):
    host: str = ""


class _Nats(msgspec.Struct):
    server_id: _ServerId
    user_nkey: str
    connect_opts: _Options = msgspec.field(default_factory=_Options)
    client_info: _Client = msgspec.field(default_factory=_Client)


class _Claims(msgspec.Struct):
    aud: str
    nats: _Nats


_decoder = msgspec.json.Decoder(_Claims)


def read_request(data: bytes) -> AuthRequest:
    """The request in a message on `$SYS.REQ.USER.AUTH`. Raises `Malformed`.

    nats-server signs it with a key that nobody knows beforehand, so the signature would prove nothing; that it comes
    from nats-server follows from the subject, on which nobody else may publish.
    """
    try:
        claims = _decoder.decode(claims_of(data, longest=_LONGEST))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a request to authorise: {exc}") from exc
    nats = claims.nats
    if claims.aud != _AUDIENCE:
        raise Malformed("not a request to authorise: it is meant for others")
    if not (_USER_KEY.fullmatch(nats.user_nkey) and _SERVER_KEY.fullmatch(nats.server_id.id)):
        raise Malformed("not a request to authorise: user_nkey or server_id is none")
    return AuthRequest(
        nats.server_id.id,
        nats.user_nkey,
        nats.connect_opts.user,
        nats.connect_opts.password,
        nats.client_info.host,
    )


def granted(key: AccountKey, request: AuthRequest, deployment_id: str, subjects: Subjects) -> bytes:
    """The answer that lets the server of this deployment in."""
    user = server_user(deployment_id)
    permissions = {
        "pub": {"allow": [subjects.events(deployment_id)]},
        "sub": {"allow": [subjects.commands(deployment_id), f"{server_inbox_prefix(deployment_id)}.>"]},
    }
    # nats-server applies no limits of a user here; those of the account hold for each connection (nats_roles).
    unlimited = {"subs": -1, "data": -1, "payload": -1}
    claims = {
        "sub": request.user_key,
        "aud": ACCOUNT,
        "name": user,
        "nats": {"type": "user", "version": 2, **permissions, **unlimited},
    }
    return _answer(key, request, {"jwt": key.sign(claims)})


def denied(key: AccountKey, request: AuthRequest, why: str) -> bytes:
    """The answer that keeps it out. nats-server logs `why`; the client only reads that it is not authorised."""
    return _answer(key, request, {"error": why})


def deployment_of(user: str) -> str | None:
    """The deployment whose NATS user this is; None for any other user."""
    found = _USER.fullmatch(user)
    return None if found is None else found[1]


def _answer(key: AccountKey, request: AuthRequest, outcome: Mapping[str, str]) -> bytes:
    claims = {
        "sub": request.user_key,
        "aud": request.server_id,
        "nats": {"type": "authorization_response", "version": 2, **outcome},
    }
    return key.sign(claims).encode()
