"""Who sits at the table: what transports ask and tell, and what the game is told of it.

Seats are taken and given back at once (the roster, presence); the game hears of it when its turn has come (the
dispatcher), and in between things may have changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tipoff_gameserver.game import Callbacks
from tipoff_gameserver.players.admission import Admission, Grant, Refusal
from tipoff_gameserver.players.dispatch import Dispatcher
from tipoff_gameserver.players.roster import LeaveReason, Link, Player, Players, Roster
from tipoff_gameserver.presence import Presence
from tipoff_shared.netcode import DenyReason

log = logging.getLogger(__name__)

_GOING_AWAY = 1001
_KICKED = 4000  # WebSocket close codes from 4000 on are the application's
_ENDING = Refusal(503, "the server is about to end", DenyReason.FULL)
_UNKNOWN = Refusal(403, "no session is known for this client id")


class Table:
    """The transports' `Host`. While `open` is False nobody comes in. `when_empty` is called whenever the last player
    has left."""

    def __init__(
        self,
        players: Players,
        capacity: int,
        *,
        admission: Admission,
        presence: Presence,
        dispatcher: Dispatcher,
        callbacks: Callbacks,
        tick_rate: float,
        message_limit: int,
        when_empty: Callable[[], None],
    ) -> None:
        self.roster = Roster(capacity)
        self.admission = admission
        self.tick_rate = tick_rate
        self.open = False
        self._players = players
        self._presence = presence
        self._dispatcher = dispatcher
        self._callbacks = callbacks
        self._message_limit = message_limit
        self._when_empty = when_empty

    # --- what transports ask and tell (transports.Host) -------------------------------------------------------

    def refusal(self, client_id: int | None) -> Refusal | None:
        """Why this client (None: any) may not come in now."""
        return self.roster.refusal(client_id) if self.open else _ENDING

    async def look_up(self, client_id: int) -> Grant | Refusal:
        """The session of a client with a token of bevygap's matchmaker."""
        session = await self._presence.look_up(client_id)
        return _UNKNOWN if session is None else Grant(client_id, session)

    def seat(self, grant: Grant, link: Link) -> Player:
        player = self.roster.seat(grant, link, self)
        self.admission.admitted(grant)
        if grant.session_id:
            self._presence.joined(grant.session_id, grant.client_id)
        return player

    def joined(self, player: Player) -> None:
        log.info("%r joined, session %s", player, player.session_id or "of another matchmaker")
        self._dispatcher.post("on_join", self._on_join, player)

    def received(self, player: Player, data: bytes) -> None:
        player.messages_this_second += 1
        if player.messages_this_second > self._message_limit or self._dispatcher.full:
            player.messages_dropped += 1
            return
        self._dispatcher.post("on_message", self._on_message, player, data)

    def left(self, player: Player, reason: LeaveReason) -> None:
        if not self.roster.free(player):
            return
        player.connected = False
        log.info("%r: %s", player, reason)
        if player.session_id:
            self._presence.left(player.session_id)
        self._dispatcher.post("on_leave", self._on_leave, player, reason)
        if len(self.roster) == 0:
            self._when_empty()

    # --- sending players away ---------------------------------------------------------------------------------

    def kick(self, player: Player, reason: str) -> None:
        """What `Player.kick` does."""
        self._hang_up(player, _KICKED, reason, LeaveReason.KICKED)

    def kick_session(self, session_id: str, reason: str) -> None:
        """Kick whoever plays this session; if nobody does, set right whoever believes so."""
        if (player := self.roster.by_session(session_id)) is not None:
            self.kick(player, reason)
        else:
            self._presence.left(session_id)

    def close_doors(self) -> None:
        """Nobody comes in from here on."""
        self.open = False

    def send_everybody_away(self, reason: str) -> None:
        for player in self.roster:
            self._hang_up(player, _GOING_AWAY, reason, LeaveReason.CLOSED)

    def _hang_up(self, player: Player, code: int, reason: str, why: LeaveReason) -> None:
        if player.connected:
            player.connected = False
            player.hang_up(code, reason)
            self.left(player, why)

    def new_second(self) -> None:
        """Everybody may send `message_limit` messages again."""
        for player in self.roster:
            player.messages_this_second = 0

    # --- the game's callbacks, when their turn has come -------------------------------------------------------

    def _on_join(self, player: Player) -> Any:
        if not player.connected:
            return None
        self._players.enter(player)
        return self._callbacks.on_join(player)

    def _on_message(self, player: Player, data: bytes) -> Any:
        return self._callbacks.on_message(player, data) if player in self._players else None

    def _on_leave(self, player: Player, reason: LeaveReason) -> Any:
        if player not in self._players:
            return None
        self._players.leave(player)
        return self._callbacks.on_leave(player, reason)
