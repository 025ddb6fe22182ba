"""The exceptions of tipoff, each with one code for all wires.

    TipoffError                 code, message, retry_after
    ├── Malformed               400  the request cannot be understood
    │   └── EmptyMessage             a game's message of no bytes, where it is sent
    ├── NotAuthenticated        401  no login, or one that is not valid; `reason` says why
    ├── NotAllowed              403  origin, ban, or a token that is not for you
    ├── UnknownGame             404  no such game or version here
    ├── NoServerInTime          408  no server became ready before the deadline
    ├── Conflict                409  the request id is used for another game, or the session is over
    ├── kv.LostRace             409  a compare-and-set found another revision
    ├── TooLarge                413  message over the limit
    │   └── MessageTooLarge          a game's message, where it is sent; `size` and `limit` in bytes
    ├── SlowDown                429  too many requests; `retry_after` says when
    ├── Internal                500  a fault in tipoff; the message reveals nothing internal
    ├── OrchestratorFailed      502  the orchestrator could not start or find a server
    └── Unavailable             503  no matchmaker, no room, overloaded, or NATS is away
        ├── kv.Full                  the bucket has reached its limit
        └── nats.errors.*            NATS: no listener, no answer, not permitted, refused
    ConfigError                 a wrong setting or games.toml; names the place and what is allowed

The same codes are used in WebSocket messages (`{"Error": [code, message]}`), HTTP statuses and NATS headers. netcode
has its own tree (`netcode/errors.py`), because it is usable without the rest.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class TipoffError(Exception):
    """Base of all typed errors. `code` is the number on the wire; `retry_after` is in seconds."""

    code: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class Malformed(TipoffError):
    """The request cannot be understood."""

    code = 400


class EmptyMessage(Malformed, ValueError):
    """A game's message has no bytes; nothing was sent. `limit` is in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"a message has 1 to {limit} bytes, not 0")
        self.limit = limit


class LoginReason(StrEnum):
    """Why a login failed. The message of `NotAuthenticated` begins with it, on every wire: `expired: the login ...`."""

    MISSING = "missing"
    MALFORMED = "malformed"
    ALGORITHM = "algorithm"
    UNKNOWN_KEY = "unknown key"
    SIGNATURE = "signature"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    ISSUER = "issuer"
    AUDIENCE = "audience"
    USER_ID = "user id"
    REFUSED = "refused"


class NotAuthenticated(TipoffError):
    """The request has no login, or one that is not valid. `reason` says why."""

    code = 401

    @property
    def reason(self) -> LoginReason | None:
        """Why the login failed; None where the other side names no reason that this release knows."""
        name = self.message.partition(":")[0]
        return LoginReason(name) if name in LoginReason.__members__.values() else None


class NotAllowed(TipoffError):
    """Refused by the origin rule, a ban or a token for somebody else."""

    code = 403


class UnknownGame(TipoffError):
    """There is no such game or version."""

    code = 404


class NoServerInTime(TipoffError):
    """No server became ready before the deadline."""

    code = 408


class Conflict(TipoffError):
    """The request id is used for another game, or the session is over."""

    code = 409


class TooLarge(TipoffError):
    """The message is over the limit."""

    code = 413


class MessageTooLarge(TooLarge, ValueError):
    """A game's message is longer than its connection takes; nothing was sent. `size` and `limit` are in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message has 1 to {limit} bytes, not {size}; send it in parts")
        self.size = size
        self.limit = limit


class SlowDown(TipoffError):
    """Too many requests; `retry_after` says when to try again."""

    code = 429


class Internal(TipoffError):
    """A fault in tipoff. The message reveals nothing internal."""

    code = 500


class OrchestratorFailed(TipoffError):
    """The orchestrator could not start or find a server."""

    code = 502


class Unavailable(TipoffError):
    """No matchmaker, no room, overloaded, or NATS is away. Repeating may help."""

    code = 503


BY_CODE: dict[int, type[TipoffError]] = {
    cls.code: cls
    for cls in (
        Malformed,
        NotAuthenticated,
        NotAllowed,
        UnknownGame,
        NoServerInTime,
        Conflict,
        TooLarge,
        SlowDown,
        Internal,
        OrchestratorFailed,
        Unavailable,
    )
}


def from_code(code: int, message: str, *, retry_after: float | None = None) -> TipoffError:
    """The typed error for a code from a wire; an unknown code becomes `Internal`."""
    return BY_CODE.get(code, Internal)(message, retry_after=retry_after)


class ConfigError(Exception):
    """A setting or games.toml is wrong. The text names the file and line or the variable, and what is allowed."""
