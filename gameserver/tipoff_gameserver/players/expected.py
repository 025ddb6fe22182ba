"""Remembers who is on the way: the players whose seats are promised and who have not connected yet. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class ExpectedPlayer:
    """A player who has a seat here and has not connected yet. `seconds`: how much longer the seat waits."""

    session_id: str
    seconds: float


class ExpectedPlayers:
    """The sessions that are expected, at most a thousand of them. `now`: seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()
        self._came: OrderedDict[str, None] = OrderedDict()
        """Sessions that have connected: the message about their seat may come later than they do."""

    def expect(self, session_id: str, seconds: float, now: float) -> None:
        """The session's seat waits for `seconds` from now; replaces what was known of it."""
        self._until.pop(session_id, None)
        if seconds > 0 and session_id not in self._came:
            self._until[session_id] = now + seconds
            while len(self._until) > _REMEMBERED:
                self._until.popitem(last=False)

    def arrived(self, session_id: str) -> None:
        """The session has connected."""
        self._until.pop(session_id, None)
        self._came[session_id] = None
        self._came.move_to_end(session_id)
        while len(self._came) > _REMEMBERED:
            self._came.popitem(last=False)

    def drop(self, session_id: str) -> None:
        """The session is over; idempotent."""
        self._until.pop(session_id, None)

    def current(self, now: float) -> tuple[ExpectedPlayer, ...]:
        """Those whose seats still wait, in the order in which they got them."""
        for session_id in [session_id for session_id, until in self._until.items() if until <= now]:
            del self._until[session_id]
        return tuple(ExpectedPlayer(session_id, until - now) for session_id, until in self._until.items())
