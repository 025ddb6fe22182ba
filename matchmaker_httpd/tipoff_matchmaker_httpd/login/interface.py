"""Defines what a login is: a credential and the player's address in, an `Identity` or a typed error out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tipoff_shared.admission.client_address import Address
from tipoff_shared.errors import LoginReason, Malformed, NotAuthenticated
from tipoff_shared.names import check_user_id, clean_player_name

MAX_CREDENTIAL = 4096
"""Bytes of the longest credential: that of a request, or of an Authorization header."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a player is: `user_id` (1 to 64 bytes) and `name` (at most 48 bytes, "" where the login says none)."""

    user_id: str
    name: str = ""


class Login(Protocol):
    """One way to find out who a player is."""

    async def identify(self, auth: Mapping[str, Any] | None, address: Address) -> Identity:
        """Who sent `auth`, the member of that name in a request, from `address`.

        Raises `NotAuthenticated` with a `LoginReason`, `Unavailable` while that cannot be found out, and `SlowDown`
        when the address has used its share. No text holds the credential. Cancelling is safe.
        """
        ...


def failed(reason: LoginReason, sentence: str, *, retry_after: float | None = None) -> NotAuthenticated:
    """The error for a login that failed. `sentence` says what is wrong and what to do."""
    return NotAuthenticated(f"{reason}: {sentence}", retry_after=retry_after)


def missing() -> NotAuthenticated:
    """The error for a request without a credential."""
    return failed(
        LoginReason.MISSING,
        'this server wants a login; send "auth": {"token": "..."} in the request, or the header '
        "Authorization: Bearer ...",
    )


def identity_of(user_id: object, name: object) -> Identity:
    """The identity that a login names. A whole number is a user id, too; a name that cannot be used is left out.
    Raises `Malformed`."""
    if isinstance(user_id, int) and not isinstance(user_id, bool) and 0 <= user_id < 2**64:
        user_id = str(user_id)
    if user_id is None or user_id == "":
        raise Malformed("user id: there is none")
    return Identity(check_user_id(user_id), clean_player_name(name) if isinstance(name, str) else "")


def bearer_token(header: str | None) -> str | None:
    """The token of an Authorization header of the scheme Bearer (RFC 6750); None for any other."""
    if header is None or len(header) > MAX_CREDENTIAL:
        return None
    scheme, _, token = header.strip().partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None
