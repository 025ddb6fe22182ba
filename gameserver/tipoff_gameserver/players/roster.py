"""Seats players: takes and frees seats for all transports, and reports joins and leaves to the game and the matchmaker.

    transport ──seat, received, lost, left──> Roster ──now──────────> Presence (active_connections)
                                                  └──in its turn──> Dispatcher ──> the game's callbacks

A seat is taken when a transport lets a client in, and free when its connection is gone, whatever the game has been
told by then: the game hears of it in its turn, and in between things may have changed.

    connected ──lost──> dropped ──`resume_ttl` over──> left
        ^   <──seat──────┘ │                            ^
        └──seat (newer)    └──kick, ban, end────────────┘

The seat of a player whose connection is lost is held where the token says so. Presence is told nothing of it: for the
matchmaker the session goes on, so the hold is this process's alone and ends with it at the latest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from tipoff_gameserver.context import ServerOptions
from tipoff_gameserver.players.dispatch import Callbacks, Dispatcher
from tipoff_gameserver.players.expected import ExpectedPlayer, ExpectedPlayers
from tipoff_gameserver.players.holds import Holds
from tipoff_gameserver.players.player import LeaveReason, Link, LostLink, Player, Players
from tipoff_gameserver.players.token_check import Grant, Refusal, TokenCheck
from tipoff_gameserver.presence.interface import Presence
from tipoff_shared.ban_list import BanList, ban_key, text_of
from tipoff_shared.framing import CloseCode
from tipoff_shared.netcode import DenyReason
from tipoff_shared.records import Bans
from tipoff_shared.session_end import GAME_FAILED, EndCause, SessionEnd, end_of

log = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 16 << 20
"""Bytes of messages that may wait while an async callback runs; further ones are dropped, or left where they are."""
_MESSAGE_UNIT = 1200
"""A longer message counts as so many against `message_limit` as it has of these."""
_ENDING = Refusal(503, "the server is about to end", DenyReason.FULL)
_FULL = Refusal(503, "the server is full", DenyReason.FULL)
_CONNECTED_ALREADY = Refusal(409, "this client is playing here already", DenyReason.ALREADY_CONNECTED)
_CAUSES = {
    LeaveReason.LEFT: EndCause.LEFT,
    LeaveReason.TIMED_OUT: EndCause.TIMED_OUT,
    LeaveReason.KICKED: EndCause.KICKED,
    LeaveReason.TOO_SLOW: EndCause.TOO_SLOW,
    LeaveReason.MISBEHAVED: EndCause.MISBEHAVED,
    LeaveReason.CLOSED: EndCause.SERVER_STOPPED,
}
_UNKNOWN = Refusal(403, "no session is known for this client id")


class Roster:
    """One list of seats and one capacity for all transports. Admits nobody until `start_admitting`.

    `players` is the game's view of it, one step behind.
    """

    def __init__(
        self,
        players: Players,
        options: ServerOptions,
        token_check: TokenCheck,
        presence: Presence,
        dispatcher: Dispatcher,
        callbacks: Callbacks,
    ) -> None:
        self.capacity = options.capacity
        self.flood_limit = options.flood_limit
        """Packets or frames per second of one player, beyond which its transport disconnects it."""
        self._message_limit = options.message_limit
        self._players = players
        self._token_check = token_check
        self._presence = presence
        self._dispatcher = dispatcher
        self._callbacks = callbacks
        self._admitting = False
        self._by_client_id: dict[int, Player] = {}
        self._bans = BanList()
        self._expected = ExpectedPlayers()
        self._holds = Holds[Player]()
        self._next_id = 1
        self._queued_bytes = 0
        self._second = asyncio.Event()
        self._on_empty: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._by_client_id)

    def __iter__(self) -> Iterator[Player]:
        return iter(tuple(self._by_client_id.values()))

    def start_admitting(self) -> None:
        """Let players in from now on."""
        self._admitting = True

    def stop_admitting(self) -> None:
        """Let nobody in from now on; those who play may stay."""
        self._admitting = False

    def on_empty(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever the last player has left."""
        self._on_empty.append(callback)

    # --- what transports ask and report -----------------------------------------------------------------------

    def has_room(self) -> bool:
        """Whether a seat is free."""
        return len(self._by_client_id) < self.capacity

    def is_connected(self, client_id: int) -> bool:
        """Whether this client has a seat."""
        return client_id in self._by_client_id

    def comes_back(self, grant: Grant) -> bool:
        """Whether the bearer of `grant` has a seat, and its new connection replaces the former one."""
        player = self._by_client_id.get(grant.client_id)
        return (
            player is not None
            and player.resume_ttl > 0
            and player.session_id == grant.session_id
            and (player.dropped or grant.generation > player.generation)
        )

    def refusal(self, client_id: int | None, grant: Grant | None = None) -> Refusal | None:
        """Why this client (None: any client) cannot have a seat now; None if it can. With `grant` it may come back to
        the one it has, also on a server that lets in nobody new."""
        if grant is not None and self.comes_back(grant):
            return None
        if not self._admitting:
            return _ENDING
        if client_id is not None and client_id in self._by_client_id:
            return _CONNECTED_ALREADY
        return None if self.has_room() else _FULL

    def banned(self, grant: Grant, address: str) -> Refusal | None:
        """Why the bearer of `grant` at `address` (an IP address, perhaps with its port) is kept out; None if it is
        not."""
        if not len(self._bans):
            return None
        ban = self._bans.find(
            time.time(), address=_host_of(address), user=grant.user_id, client_id=grant.client_id
        )
        return None if ban is None else Refusal(403, text_of(ban))

    @property
    def expected(self) -> tuple[ExpectedPlayer, ...]:
        """Those who have a promised seat and have not connected."""
        return self._expected.current(time.monotonic())

    def expect(self, session_id: str, seconds: float) -> None:
        """A seat waits for this session's player for `seconds` from now."""
        self._expected.expect(session_id, seconds, time.monotonic())

    async def look_up(self, client_id: int) -> Grant | Refusal:
        """The session of a client with a token of bevygap's matchmaker."""
        session = await self._presence.look_up(client_id)
        return _UNKNOWN if session is None else Grant(client_id, session)

    def seat(self, grant: Grant, link: Link) -> Player:
        """Take a seat, or come back to it; the caller has seen `refusal` return None."""
        if (player := self._by_client_id.get(grant.client_id)) is not None:
            self._resume(player, grant, link)
            return player
        player = Player(self._next_id, grant, link, self.kick)
        self._next_id += 1
        self._by_client_id[grant.client_id] = player
        self._token_check.admitted(grant)
        if grant.session_id:
            self._expected.arrived(grant.session_id)
            self._presence.joined(grant.session_id, grant.client_id)
        return player

    def _resume(self, player: Player, grant: Grant, link: Link) -> None:
        former = player.link
        if player.connected:
            self._drop(player)
            former.close(CloseCode.REPLACED, "you have connected anew")
        self._holds.end(player)
        player.link = link
        player.max_message = link.max_message
        player.generation = grant.generation
        player.dropped, player.connected = False, True
        player.returns += 1
        self._token_check.admitted(grant)

    def joined(self, player: Player) -> None:
        """The player knows that it is in: the game may send to it."""
        if player.returns:
            log.info("%r is back", player)
            self._dispatcher.post("on_resume", self._call_on_resume, player)
            return
        log.info("%r joined, session %s", player, player.session_id or "of another matchmaker")
        self._dispatcher.post("on_join", self._call_on_join, player)

    def received(self, player: Player, data: bytes) -> None:
        """A message came from the player. It is dropped if `takes` says no."""
        if (
            player.messages_this_second >= self._message_limit
            or self._dispatcher.full
            or self._queued_bytes >= MAX_QUEUED_BYTES
        ):
            player.messages_dropped += 1
            return
        size = len(data)
        player.messages_this_second += 1 if size <= _MESSAGE_UNIT else -(-size // _MESSAGE_UNIT)
        self._queued_bytes += size
        self._dispatcher.post("on_message", self._call_on_message, player, data)

    def takes(self, player: Player) -> bool:
        """Whether the game takes one more message of the player now: a reliable one can wait."""
        return not (
            player.messages_this_second >= self._message_limit
            or self._queued_bytes >= MAX_QUEUED_BYTES
            or self._dispatcher.full
        )

    async def next_second(self) -> None:
        """Wait until players may send again."""
        await self._second.wait()

    def lost(self, player: Player, link: Link, reason: LeaveReason, end: SessionEnd | None = None) -> None:
        """The connection `link` is lost, without a goodbye: the player's seat is held where its token says so, or the
        player has left for `reason`. Nothing happens when it has another connection by now."""
        if player.link is not link or not player.connected:
            return
        if player.resume_ttl:
            self._drop(player)
        else:
            self.left(player, reason, end)

    def _drop(self, player: Player) -> None:
        player.connected, player.dropped = False, True
        player.link = LostLink(player.link)
        self._holds.hold(player, time.monotonic() + player.resume_ttl)
        log.info("%r: its connection is lost, its seat is held for %d s", player, player.resume_ttl)
        self._dispatcher.post("on_drop", self._call_on_drop, player)

    def left(self, player: Player, reason: LeaveReason, end: SessionEnd | None = None) -> None:
        """The player has left, and its seat is free. `end`: what the operator reads, where `reason` does not say it
        all. Idempotent."""
        if self._by_client_id.get(player.client_id) is not player:
            return
        del self._by_client_id[player.client_id]
        player.connected = player.dropped = False
        self._holds.end(player)
        if player.resume_ttl:
            self._token_check.given_up(player.session_id)
        end = end or end_of(_CAUSES[reason])
        log.info("%r: %s", player, end)
        if player.session_id:
            self._presence.left(player.session_id, end)
        self._dispatcher.post("on_leave", self._call_on_leave, player, reason)
        if not self._by_client_id:
            for callback in self._on_empty:
                callback()

    # --- removing players -------------------------------------------------------------------------------------

    def kick(self, player: Player, reason: str) -> None:
        """Remove a player, as `Player.kick` does."""
        self._hang_up(player, CloseCode.KICKED, reason, LeaveReason.KICKED, end_of(EndCause.KICKED, reason))

    def failed_for(self, player: Player, label: str, exc: BaseException) -> None:
        """Remove a player whom the game could not take in, because `label` raised `exc`: the player hears that the game
        failed, the operator how."""
        self._hang_up(
            player,
            CloseCode.GAME_FAILED,
            "the game failed: it could not let you in",
            LeaveReason.KICKED,
            end_of(EndCause.GAME_FAILED, f"its {label} raised {type(exc).__name__}: {exc}"),
        )

    def kick_session(self, session_id: str, reason: str) -> None:
        """Kick the player of this session. If there is none, report that: the matchmaker believes otherwise."""
        self._expected.drop(session_id)
        player = next((p for p in self._by_client_id.values() if p.session_id == session_id), None)
        if player is not None:
            self.kick(player, reason)
        else:
            self._presence.left(session_id)

    def ban(self, bans: Bans) -> None:
        """Keep these players out from now on, and kick those who play."""
        if bans.first:
            self._bans.replace({})
        for ban in bans.bans:
            self._bans.put(ban_key(ban), ban)
        for player in self:
            grant = Grant(player.client_id, player.session_id, user_id=player.user_id)
            if (refusal := self.banned(grant, player.address)) is not None:
                self.kick(player, refusal.text)

    def close_all(self, reason: str, failure: BaseException | None = None) -> None:
        """Remove every player because the server ends, for this reason or for the game's `failure`."""
        code, text, end = CloseCode.GOING_AWAY, "the server ends", end_of(EndCause.SERVER_STOPPED, reason)
        if failure is not None:
            code, text, end = CloseCode.GAME_FAILED, GAME_FAILED, end_of(EndCause.GAME_FAILED, str(failure))
        for player in self:
            self._hang_up(player, code, text, LeaveReason.CLOSED, end)

    def _hang_up(self, player: Player, code: int, reason: str, why: LeaveReason, end: SessionEnd) -> None:
        if player.connected or player.dropped:
            player.connected = False
            player.link.close(code, reason)
            self.left(player, why, end)

    def new_second(self) -> None:
        """Start a new second: every player may send `message_limit` messages again. Seats that were held long enough
        are free."""
        for player in self._holds.take_due(time.monotonic()):
            end = end_of(EndCause.TIMED_OUT, f"it did not come back within {player.resume_ttl} s")
            self.left(player, LeaveReason.TIMED_OUT, end)
        for player in self:
            player.messages_this_second = 0
        self._second.set()
        self._second = asyncio.Event()

    # --- the game's callbacks, in their turn ------------------------------------------------------------------

    def _call_on_join(self, player: Player) -> Any:
        if not (player.connected or player.dropped):
            return None
        self._players.enter(player)
        return self._callbacks.on_join(player)

    def _call_on_message(self, player: Player, data: bytes) -> Any:
        self._queued_bytes -= len(data)
        return self._callbacks.on_message(player, data) if player in self._players else None

    def _call_on_drop(self, player: Player) -> Any:
        return self._callbacks.on_drop(player) if player in self._players else None

    def _call_on_resume(self, player: Player) -> Any:
        return self._callbacks.on_resume(player) if player in self._players else None

    def _call_on_leave(self, player: Player, reason: LeaveReason) -> Any:
        if player not in self._players:
            return None
        self._players.leave(player)
        return self._callbacks.on_leave(player, reason)


def _host_of(address: str) -> str:
    """The IP address in `203.0.113.7:31000`, `[2001:db8::7]:31000`, or either without the port."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address
