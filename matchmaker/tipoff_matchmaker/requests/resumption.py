"""Gives a player whose connection was lost a fresh token for the seat that it still has.

The seat is held by its game server, which goes on reporting the session as connected until `resume_ttl` is over; so
nothing is to be remembered here, and no crash can lose or leak a held seat. The proof is the key from the session's
`SessionReady`. Each token has a generation of its own, written down before the token goes out, so that a game server
knows the newer of two connections.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tipoff_matchmaker.bans import BanEnforcer
from tipoff_matchmaker.requests.answers import Answers
from tipoff_matchmaker.sessions.state_machine import Resumed
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.tokens import Tokens
from tipoff_shared.errors import Conflict, NotAllowed, Unavailable
from tipoff_shared.games import Game
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import SessionState

_TRIES = 8
"""Tokens that others may make for the same session meanwhile."""
_SEATED = (SessionState.READY, SessionState.ACTIVE)


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """A player wants the seat of `session_id` back. `key` is a secret; `timeout` in seconds."""

    session_id: str
    key: str
    game: Game
    client_ip: str
    timeout: float

    def __repr__(self) -> str:
        return f"ResumeRequest({self.session_id!r}, key=..., game={self.game.name!r})"


class Resumption:
    """Answers the resume requests of one matchmaker."""

    def __init__(self, sessions: SessionStore, bans: BanEnforcer, tokens: Tokens, answers: Answers) -> None:
        self._sessions = sessions
        self._bans = bans
        self._tokens = tokens
        self._answers = answers

    async def resume(self, request: ResumeRequest) -> SessionReady:
        """A token for the session's seat.

        Raises `NotAllowed` for a wrong key, which costs one reading and changes nothing, or a ban; `Conflict` when the
        seat is no longer the player's; `Unavailable`. Cancelling is safe: a token that is not used expires.
        """
        game = request.game
        self._bans.check(request.client_ip, "")
        if not self._tokens.resume_ttl(game):
            raise Conflict("this game holds no seats for players who come back; ask for a new one")
        if not self._tokens.proves(game, request.session_id, request.key):
            raise NotAllowed("this key is not the session's")
        for _ in range(_TRIES):
            record = await self._sessions.read(request.session_id)
            if record is None or (record.game, record.version) != game.key:
                raise Conflict("this session has ended; ask for a new seat")
            self._bans.check("", record.user_id)
            if record.state not in _SEATED:
                raise Conflict(f"this session has ended{_because(record.reason)}; ask for a new seat")
            deployment, endpoint = await self._answers.seat_of(game, record)
            record = msgspec.structs.replace(record, generation=record.generation + 1)
            issued = self._answers.issue(game, record, deployment, endpoint)
            self._answers.check_repetition(game, record, issued)
            event = Resumed(record.generation, issued.claim_deadline)
            if not (await self._sessions.apply(record.id, event)).changed:
                continue
            await self._answers.hand_out(game, record, issued)
            return await self._answers.ready(game, record, deployment, endpoint, issued)
        raise Unavailable("this session is being resumed by others; try again", retry_after=1)


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""
