"""Defines the errors of a player. All of them are `tipoff_shared.errors.TipoffError`.

    TipoffError                 what the matchmaker answered: Malformed, NotAuthenticated, NotAllowed, UnknownGame,
    │                           NoServerInTime, SlowDown, Unavailable ... (tipoff_shared.errors; `code`, `retry_after`)
    └── PlayerError             what the client found by itself
        ├── ConnectionFailed    no way to the matchmaker, or to the game server by any transport
        ├── Refused             the game server did not let this player in; `server_code` is its answer
        └── ConnectionOver      the connection was up and has ended; `close_code`, `reason`
            ├── ServerLost      the game server vanished: crashed, killed, unreachable, and the seat is not to be had
            │                   again. Connect again for a new game
            └── Closed          used after its end: closed by this side, or the match is over

`ServerLost` and `Closed` say how the connection ended: `close_code` (docs/wire.md, section 2) and `reason`, in the
server's words.

`connect` raises every kind but ServerLost and Closed. Receiving ends quietly when the match is over or the player was
closed, and raises ServerLost when the server vanished; `send` raises ServerLost or Closed accordingly.
"""

from __future__ import annotations

from tipoff_shared.errors import TipoffError


class PlayerError(TipoffError):
    """Base of the errors that the client finds by itself."""

    code = 503


class ConnectionFailed(PlayerError):
    """Nothing listens there, or nothing gets through. The text names every way that was tried and how it ended.
    `closed`: all of them are closed ports."""

    def __init__(self, message: str, *, closed: bool = False) -> None:
        super().__init__(message)
        self.closed = closed


class Refused(PlayerError):
    """The game server refused this player. `server_code` is its number (403 where the transport carries none)."""

    code = 403

    def __init__(self, message: str, *, server_code: int = 403) -> None:
        super().__init__(message)
        self.server_code = server_code


class ConnectionOver(PlayerError):
    """Base of the two below. `close_code` is None where no close came; `reason` is "" where it carried none."""

    def __init__(self, message: str, *, close_code: int | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.close_code = close_code
        self.reason = reason


class ServerLost(ConnectionOver):
    """The connection was up and ended without a close, or the server failed. What was sent last may or may not have
    arrived."""


class Closed(ConnectionOver):
    """The player was closed, or the server closed the connection in an orderly way; the text says which."""

    code = 409
