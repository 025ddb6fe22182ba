"""Why a connection to a game server ends: WebSocket's close codes, which a close frame carries over UDP too."""

from __future__ import annotations

from enum import IntEnum

MAX_REASON_BYTES = 123
"""RFC 6455, 5.5.1."""


class CloseCode(IntEnum):
    """Codes below 4000 are WebSocket's own; from 4000 on they are tipoff's."""

    NORMAL = 1000
    GOING_AWAY = 1001  # the server ends
    POLICY = 1008  # refused, or the player broke a rule
    TOO_BIG = 1009
    INTERNAL = 1011  # the server failed, or heard nothing
    TRY_AGAIN_LATER = 1013
    KICKED = 4000  # by the game or by an operator
    TOO_SLOW = 4001  # did not take what was sent to it
    REPLACED = 4002  # the same player has connected anew
    GAME_FAILED = 4003  # the game raised an exception, or does not return


ORDERLY = frozenset({1000, 1001, 1008, 1012, 1013, *range(4000, 5000)})
"""Close codes of an orderly end. Anything else, or no close at all, is a lost server."""


def cut_reason(text: str) -> str:
    """`text` within what a close can carry."""
    return text.encode()[:MAX_REASON_BYTES].decode(errors="ignore")
