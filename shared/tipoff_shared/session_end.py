"""Says why a player's session ended: a cause, by which machines tell ends apart, and a detail for the operator.

    game server ──SessionEnd.encode()──> header of the deletion, or event ──parse_end()──> matchmaker: session record

The text comes from a game server, which may be hostile: it is cut, and has no control characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tipoff_shared.primitives.text import one_line

MAX_DETAIL = 160
"""Characters."""
GAME_FAILED = "the game failed"
"""How a server's reason begins when its game cannot go on."""
NO_HEARTBEAT = "it sends no heartbeat"
"""Why a server is stopped that runs and does not answer."""
_CRASHED = ("exited with code ", "killed by signal ")
_ENDED_WELL = "exited with code 0"


class EndCause(StrEnum):
    """Why a session ended. Each is a `str`, and a label of the metric `tipoff_matchmaker_sessions_ended_total`."""

    LEFT = "left"
    LOST = "lost"
    TIMED_OUT = "timed_out"
    KICKED = "kicked"
    TOO_SLOW = "too_slow"
    MISBEHAVED = "misbehaved"
    GAME_FAILED = "game_failed"
    SERVER_CRASHED = "server_crashed"
    SERVER_SILENT = "server_silent"
    SERVER_STOPPED = "server_stopped"
    NOT_CLAIMED = "not_claimed"
    NO_SEAT = "no_seat"
    OPERATOR = "operator"


_TEXTS = {
    EndCause.LEFT: "the player left",
    EndCause.LOST: "the player's connection broke",
    EndCause.TIMED_OUT: "the player's connection timed out",
    EndCause.KICKED: "the game kicked the player",
    EndCause.TOO_SLOW: "the player did not take what was sent to it",
    EndCause.MISBEHAVED: "the player broke a rule",
    EndCause.GAME_FAILED: GAME_FAILED,
    EndCause.SERVER_CRASHED: "the server crashed",
    EndCause.SERVER_SILENT: "the server does not respond",
    EndCause.SERVER_STOPPED: "the server stopped",
    EndCause.NOT_CLAIMED: "the player did not connect in time",
    EndCause.NO_SEAT: "no seat was found",
    EndCause.OPERATOR: "an operator ended the session",
}
_A_SERVER_MAY_SAY = frozenset(
    {
        EndCause.LEFT,
        EndCause.LOST,
        EndCause.TIMED_OUT,
        EndCause.KICKED,
        EndCause.TOO_SLOW,
        EndCause.MISBEHAVED,
        EndCause.GAME_FAILED,
        EndCause.SERVER_STOPPED,
    }
)
"""The others are a matchmaker's to find: an address whose seats are not claimed gets fewer, for example."""


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """One end. `detail`: one line of at most `MAX_DETAIL` characters, or ""."""

    cause: EndCause = EndCause.LEFT
    detail: str = ""

    def __str__(self) -> str:
        """For people: `the game kicked the player: no cheating`."""
        text = _TEXTS[self.cause]
        return f"{text}: {self.detail}" if self.detail else text

    def encode(self) -> str:
        """As it travels: `kicked: no cheating`."""
        return f"{self.cause}: {self.detail}" if self.detail else str(self.cause)


BY_ITSELF = SessionEnd()
"""The player left; also what a server means that does not say why."""


def end_of(cause: EndCause, detail: str = "") -> SessionEnd:
    """An end with any text as its detail."""
    return SessionEnd(cause, one_line("".join(c if c.isprintable() else " " for c in detail), MAX_DETAIL))


def parse_end(text: str) -> SessionEnd:
    """What a game server `encode`d. Whatever the text, it gives an end: `LEFT`, where it names no cause that this
    release knows, or none that a server may name."""
    cause, _, detail = text.partition(":")
    if cause in _A_SERVER_MAY_SAY:
        return end_of(EndCause(cause), detail)
    return end_of(EndCause.LEFT, text)


def server_end(reason: str) -> SessionEnd:
    """Why the sessions of a server end that ended, or is stopped, for this `reason`."""
    if reason.startswith(_CRASHED) and not reason.startswith(_ENDED_WELL):
        return end_of(EndCause.SERVER_CRASHED, reason)
    if reason.startswith(GAME_FAILED):
        return end_of(EndCause.GAME_FAILED, reason.removeprefix(GAME_FAILED).lstrip(": "))
    if reason == NO_HEARTBEAT:
        return end_of(EndCause.SERVER_SILENT, reason)
    return end_of(EndCause.SERVER_STOPPED, reason)
