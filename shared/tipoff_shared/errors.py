"""Every failure a player, a game developer or an operator can meet, with one code for all wires.

    TipoffError                 code, message, retry_after
    ├── Malformed               400  the request cannot be understood
    ├── NotAuthenticated        401  the login hook wants credentials
    ├── NotAllowed              403  origin, login hook, or a token that is not for you
    ├── UnknownGame             404  no such game or version here
    ├── NoServerInTime          408  no server became ready before the deadline
    ├── Conflict                409  the request id is in use for something else, or the session is over
    ├── TooLarge                413  message over the limit
    ├── SlowDown                429  too many requests; `retry_after` says when
    ├── Internal                500  ours; the message says nothing internal
    ├── OrchestratorFailed      502  the orchestrator could not start or find a server
    └── Unavailable             503  no matchmaker, no room, overloaded, or NATS is away
    ConfigError                 settings or games.toml: says where, and what is allowed

The codes are those of WebSocket `{"Error": [code, message]}`, HTTP statuses and NATS headers alike.
"""

from __future__ import annotations

from typing import ClassVar


class TipoffError(Exception):
    """Base of all typed failures. `code` is the number on the wire; `retry_after` is in seconds."""

    code: ClassVar[int] = 500

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message


class Malformed(TipoffError):
    code = 400


class NotAuthenticated(TipoffError):
    code = 401


class NotAllowed(TipoffError):
    code = 403


class UnknownGame(TipoffError):
    code = 404


class NoServerInTime(TipoffError):
    code = 408


class Conflict(TipoffError):
    code = 409


class TooLarge(TipoffError):
    code = 413


class SlowDown(TipoffError):
    code = 429


class Internal(TipoffError):
    code = 500


class OrchestratorFailed(TipoffError):
    code = 502


class Unavailable(TipoffError):
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
    """The typed error for a code that came over a wire; an unknown code becomes `Internal`."""
    return BY_CODE.get(code, Internal)(message, retry_after=retry_after)


class ConfigError(Exception):
    """Settings or games.toml cannot be used. The text names the file, the line and what is allowed."""
