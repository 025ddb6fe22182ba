"""What follows from a session's steps: its deadline is remembered, what it held is given back, its connection ended."""

from __future__ import annotations

from tipoff_matchmaker.sessions.deadlines import Deadlines
from tipoff_matchmaker.sessions.kicker import Kicks
from tipoff_matchmaker.sessions.machine import Effect
from tipoff_matchmaker.sessions.release import GiveBack
from tipoff_shared.games import Games
from tipoff_shared.records import SessionRecord, SessionState


class SessionEffects:
    """What the session book tells (session_book.py)."""

    def __init__(self, games: Games, give_back: GiveBack, kicks: Kicks, deadlines: Deadlines) -> None:
        self._games = games
        self._give_back = give_back
        self._kicks = kicks
        self._deadlines = deadlines

    def written(self, record: SessionRecord) -> None:
        """It stands like this now."""
        if record.state in (SessionState.REQUESTED, SessionState.READY):
            self._deadlines.add(record.id, record.deadline + 0.01)
        else:
            self._deadlines.drop(record.id)

    def follow(self, session_id: str, record: SessionRecord | None, effect: Effect) -> None:
        match effect:
            case Effect.GIVE_BACK if record is not None:
                self._give_back.start(record)
            case Effect.KICK:
                self._kicks.start(session_id, record)
            case Effect.CLAIMED if record is not None:
                game = self._games.get(record.game, record.version)
                if game is not None and game.bevygap:
                    self._give_back.claimed(session_id)
            case _:
                pass
