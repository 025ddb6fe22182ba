"""Listens for players over UDP: the thin driver around the sans-I/O netcode server.

Sockets are drained whenever they are readable, packets of players before those of strangers. What is to be sent goes
out once per turn of the event loop, however many messages the game sent meanwhile. Events reach the game in the order
of their packets.

A client that knows tipoff's framing has a `MessageChannel`: its reliable messages and those over 1200 bytes, and the
reason of a close, travel in frames. The plain ones of all clients are netcode's payloads.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from tipoff_gameserver.context import Context
from tipoff_gameserver.players.player import MAX_PLAIN_BYTES, LeaveReason, Player
from tipoff_gameserver.players.roster import Roster
from tipoff_gameserver.players.token_check import BUSY, Grant, LookUp, Refusal, TokenCheck
from tipoff_gameserver.throttled_log import ThrottledLog
from tipoff_shared.errors import Malformed
from tipoff_shared.framing import MAX_MESSAGE_BYTES, CloseCode, MessageChannel, encode_close
from tipoff_shared.netcode import (
    Address,
    AdmitRequest,
    Connected,
    Decision,
    Denial,
    Dialect,
    Disconnected,
    DisconnectReason,
    Frame,
    Payload,
    Server,
    ServerEvent,
)
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.session_end import EndCause, end_of
from tipoff_shared.udp_sockets import Datagrams, UdpSockets

log = logging.getLogger(__name__)

MAX_LOOK_UPS = 64
"""Look-ups of bevygap's sessions at a time; further clients wait for their turn."""
MAX_WAITING = 1024
"""Clients that may wait for a look-up, as many as may be in a handshake; further ones are denied."""
MAX_GRANTS = 4096
"""Clients whose session was found and who have not answered their challenge yet."""
_SHORTEST_WAIT = 0.005
LOST_AFTER = 3.0
"""Seconds of silence after which a client that takes no reliable messages is lost: a living one says something each
second."""
LINGER = 2.0
"""Seconds that a client who is disconnected keeps its slot for the reliable messages on their way to it."""
_CLOSE_REPEATS = 10
"""Close frames before netcode's disconnect packets, as many as of those: each may be lost."""

_REASONS = {
    DisconnectReason.BY_CLIENT: LeaveReason.LEFT,
    DisconnectReason.TIMED_OUT: LeaveReason.TIMED_OUT,
    DisconnectReason.FLOODED: LeaveReason.MISBEHAVED,
    DisconnectReason.REPLACED: LeaveReason.TIMED_OUT,
}
_LOST = (DisconnectReason.TIMED_OUT, DisconnectReason.REPLACED)
"""Without a goodbye. A client that is replaced is back at once."""


class _Farewell(NamedTuple):
    """How to disconnect a client, at the time `until` at the latest."""

    until: float
    code: int
    reason: str


class UdpLink:
    """One client's connection: its slot in the netcode server, and its channel where it knows framing."""

    __slots__ = ("_listener", "address", "channel", "index", "max_message", "reliable")

    transport = "udp"
    rtt: float | None = None  # only the client measures it

    def __init__(
        self, listener: UdpListener, index: int, address: Address, channel: MessageChannel | None
    ) -> None:
        self.index = index
        self.channel = channel
        self.reliable = channel is not None
        self.max_message = MAX_PLAIN_BYTES if channel is None else MAX_MESSAGE_BYTES
        self.address = str(address)
        self._listener = listener

    def send(self, data: bytes, reliable: bool = False) -> None:
        """Queue one message; it goes out at the end of this turn of the event loop."""
        if self.channel is not None and (reliable or len(data) > MAX_PLAIN_BYTES):
            self._listener.send_framed(self.index, self.channel, data, reliable)
        else:
            self._listener.send(self.index, data)

    def close(self, code: int, reason: str) -> None:
        """Disconnect the client; code and reason reach one that knows framing."""
        self._listener.disconnect(self.index, code, reason)


class UdpListener:
    """Serves `sockets`, which are bound to one port and are the listener's from now on.

    `addresses` are those of which tokens must name one; None: they are not compared. `framing`: whether clients may use
    it.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        context: Context,
        roster: Roster,
        token_check: TokenCheck,
        tasks: Tasks,
        addresses: Sequence[Address] | None,
        framing: bool,
    ) -> None:
        self._roster = roster
        self._token_check = token_check
        self._tasks = tasks
        self._netcode = Server(
            private_key=context.private_key,
            protocol_id=context.protocol_id,
            addresses=addresses or (),
            max_clients=roster.capacity,
            dialect=context.dialect,
            used_tokens=token_check.used_tokens,
            admission=self._judge,
            is_client_connected=self._is_connected,
            has_room=self._has_room,
            comes_back=self._comes_back,
            replaced=encode_close(CloseCode.REPLACED, "you have connected anew"),
            check_address=addresses is not None and context.dialect is Dialect.STANDARD,
            answer_keep_alives=True,
            packet_limit=roster.flood_limit,
            framing=framing,
        )
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._sockets = UdpSockets(sockets, self._received)
        self._players: dict[int, Player] = {}
        self._channels: dict[int, MessageChannel] = {}
        self._busy: set[int] = set()
        """Clients whose channel has something to send, or waits for an answer."""
        self._frames_due = math.inf
        self._lingering: dict[int, _Farewell] = {}
        """Clients without a player, whose last reliable messages have not arrived."""
        self._lingered = asyncio.Event()
        self._grants: dict[bytes, Grant] = {}
        self._look_ups = 0
        self._waiting: deque[AdmitRequest] = deque()
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._closed = False
        self._log = ThrottledLog()
        self._ignored_before: Counter[str] = Counter()

    async def open(self) -> None:
        """Start reading."""
        await self._sockets.open()

    def housekeeping(self, now: float) -> None:
        """Log ignored handshakes: their senders get no answer, so that nobody can probe the server. Disconnect clients
        to whom nothing reliable gets through, and take in what waited for its second."""
        for index, channel in list(self._channels.items()):
            if channel.stalled(now):
                self._throw_out(index, LeaveReason.TOO_SLOW, "reliable messages do not arrive")
            elif channel.has_message:
                self._frames_came(index, channel, (), now)
        ignored = Counter(self._netcode.ignored)
        if ignored != self._ignored_before:
            reasons = ", ".join(
                f"{reason} {count}" for reason, count in (ignored - self._ignored_before).items()
            )
            if self._log.warning("ignored", "handshakes not answered lately: %s", reasons):
                self._ignored_before = ignored

    async def close(self) -> None:
        """Disconnect all clients and close the sockets, when the last messages have arrived or after `LINGER` seconds.
        Idempotent."""
        if self._closed:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while self._lingering:
                    self._lingered.clear()
                    await self._lingered.wait()
        self._netcode.stop(self._now())
        self._flush()
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._sockets.close()

    # --- out --------------------------------------------------------------------------------------------------

    def send(self, index: int, data: bytes) -> None:
        """Send one message to the client in this slot."""
        self._netcode.send(index, data, self._now())
        self._flush_soon()

    def send_framed(self, index: int, channel: MessageChannel, data: bytes, reliable: bool) -> None:
        """Send one message in frames. A client that has taken too few reliable ones is disconnected."""
        if not reliable:
            channel.send_once(data, self._now())
        elif not channel.send(data):
            self._throw_out(index, LeaveReason.TOO_SLOW, "too many reliable messages have not arrived")
            return
        self._busy.add(index)
        self._flush_soon()

    def disconnect(self, index: int, code: int, reason: str) -> None:
        """Disconnect the client in this slot, when its reliable messages have arrived; the roster is not told, since it
        asked for it."""
        self._players.pop(index, None)
        channel = self._channels.get(index)
        if channel is None or channel.idle or code == CloseCode.TOO_SLOW:
            self._hang_up(index, code, reason)
        elif index not in self._lingering:
            self._lingering[index] = _Farewell(self._now() + LINGER, code, reason)
        self._flush_soon()

    def _hang_up(self, index: int, code: int, reason: str) -> None:
        now = self._now()
        self._forget(index)
        for _ in range(_CLOSE_REPEATS):
            self._netcode.send_frame(index, encode_close(code, reason), now)  # to those who know frames
        self._netcode.disconnect(index, now)

    def _forget(self, index: int) -> None:
        self._channels.pop(index, None)
        self._busy.discard(index)
        if self._lingering.pop(index, None) is not None:
            self._lingered.set()

    def _throw_out(self, index: int, why: LeaveReason, text: str) -> None:
        """Disconnect a client, and tell the roster. One that takes nothing and says nothing is lost, not slow."""
        player = self._players.get(index)
        silent = self._netcode.silent_for(index, self._now())
        if player is not None and why is LeaveReason.TOO_SLOW and silent >= LOST_AFTER:
            self._players.pop(index)
            self._hang_up(index, CloseCode.TOO_SLOW, text)
            self._roster.lost(player, player.link, why)
            self._flush_soon()
            return
        code = CloseCode.TOO_SLOW if why is LeaveReason.TOO_SLOW else CloseCode.POLICY
        self.disconnect(index, code, text)
        if player is not None:
            log.info("disconnected %s: %s", player.address, text)
            cause = EndCause.TOO_SLOW if why is LeaveReason.TOO_SLOW else EndCause.MISBEHAVED
            self._roster.left(player, why, end_of(cause, text))

    def _send_frames(self) -> None:
        """Pass what channels have to send on to netcode, and note when they must be asked again."""
        now = self._now()
        self._frames_due = math.inf
        for index in tuple(self._busy):
            channel = self._channels[index]
            for frame in channel.frames(now):
                self._netcode.send_frame(index, frame, now)
            due = channel.next_timeout()
            if (farewell := self._lingering.get(index)) is not None:
                if channel.idle or now >= farewell.until:
                    self._hang_up(index, farewell.code, farewell.reason)
                    continue
                due = min(due, farewell.until)
            if due == math.inf:
                self._busy.discard(index)
            self._frames_due = min(self._frames_due, due)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._busy and not self._closed:
            self._send_frames()
        out = self._netcode.datagrams_to_send()
        if out and not self._closed:
            self._sockets.send(out)
        self._set_timer()

    # --- in ---------------------------------------------------------------------------------------------------

    def _received(self, datagrams: Datagrams) -> None:
        """Take in a batch, those of players first: strangers may be many."""
        receive = self._netcode.receive_datagram
        take_events = self._netcode.events
        connected = self._netcode.connected_addresses
        strangers: list[tuple[bytes, Address]] = []
        now = self._now()
        for item in datagrams:
            if item[1] not in connected:
                strangers.append(item)
                continue
            receive(item[0], item[1], now)
            if events := take_events():
                self._tell(events)
        for data, address in strangers:
            receive(data, address, now)
            if events := take_events():
                self._tell(events)
        self._flush()

    def _tell(self, events: Sequence[ServerEvent]) -> None:
        """Pass on what happened, after every single datagram: while the game hears of it, a slot must still belong to
        the client that the event is about."""
        players = self._players
        roster = self._roster
        for event in events:
            if isinstance(event, Payload):
                if (player := players.get(event.index)) is not None:
                    roster.received(player, event.data)
            elif isinstance(event, Frame):
                if (channel := self._channels.get(event.index)) is not None:
                    self._frames_came(event.index, channel, (event.data,), self._now())
            elif isinstance(event, Connected):
                self._connected(event)
            elif isinstance(event, Disconnected):
                self._forget(event.index)
                if (player := players.pop(event.index, None)) is not None:
                    reason = _REASONS.get(event.reason, LeaveReason.KICKED)
                    if event.reason in _LOST:
                        roster.lost(player, player.link, reason)
                    else:
                        roster.left(player, reason)
            else:
                self._look_up_later(event)

    def _frames_came(self, index: int, channel: MessageChannel, frames: Sequence[bytes], now: float) -> None:
        """Take in frames of a client, and pass on what the game takes; a reliable message waits when it takes none."""
        player = self._players.get(index)
        if player is None:  # lingers: its acks count
            with contextlib.suppress(Malformed):
                for frame in frames:
                    channel.receive(frame, now)
            self._flush_soon()
            return
        roster = self._roster
        self._busy.add(index)
        try:
            for frame in frames:
                for message in channel.receive(frame, now):
                    roster.received(player, message)
            while (
                player.connected and roster.takes(player) and (found := channel.next_message(now)) is not None
            ):
                roster.received(player, found)
        except Malformed as exc:
            self._throw_out(index, LeaveReason.MISBEHAVED, str(exc))
        else:
            self._flush_soon()

    def _set_timer(self) -> None:
        due = self._netcode.next_timeout()
        if self._busy:
            due = min(due, self._frames_due)
        if self._closed or due == float("inf"):
            return
        if self._timer is not None:
            if self._timer_due <= due:
                return  # early is fine: it then finds nothing due and is set again
            self._timer.cancel()
        self._timer_due = max(due, self._now() + _SHORTEST_WAIT)
        self._timer = self._loop.call_at(self._timer_due, self._time_out)

    def _time_out(self) -> None:
        self._timer = None
        self._netcode.update(self._now())
        self._tell(self._netcode.events())
        self._flush()

    # --- the way in -------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        """Whether the game has a seat. A slot in which a client lingers is not one that is taken."""
        if not self._roster.has_room():
            return False
        self._free_lingering()
        return True

    def _comes_back(self, client_id: int, user_data: bytes) -> bool:
        """Whether the bearer of this token has a seat, to which it comes by a new connection."""
        if not self._roster.is_connected(client_id):
            return False
        verdict = self._token_check.judge(client_id, user_data)
        if not isinstance(verdict, Grant) or not self._roster.comes_back(verdict):
            return False
        self._free_lingering()
        return True

    def _free_lingering(self) -> None:
        """Where all slots are taken, disconnect a client that lingers."""
        if self._lingering and self._netcode.connected_count >= self._roster.capacity:
            index, farewell = next(iter(self._lingering.items()))
            self._hang_up(index, farewell.code, farewell.reason)

    def _is_connected(self, client_id: int) -> bool:
        """Whether the client plays. One that lingers may come back."""
        if self._lingering and not self._roster.is_connected(client_id):
            for index, farewell in list(self._lingering.items()):
                if self._netcode.client_id_of(index) == client_id:
                    self._hang_up(index, farewell.code, farewell.reason)
        return self._roster.is_connected(client_id)

    def _judge(self, request: AdmitRequest) -> Decision | Denial:
        """Decide about a client; netcode calls it once for each valid, unused token."""
        verdict = self._token_check.judge(request.client_id, request.user_data)
        known = verdict if isinstance(verdict, Grant) else None
        if refusal := self._roster.refusal(request.client_id, known):
            return Denial(refusal.deny)
        if isinstance(verdict, LookUp):
            return Decision.PENDING
        if isinstance(verdict, Grant):
            verdict = self._roster.banned(verdict, str(request.address)) or verdict
        if isinstance(verdict, Refusal):
            log.info("refused %s: %s", request.address, verdict.text)
            return Denial(verdict.deny)
        return Decision.ADMIT

    def _connected(self, event: Connected) -> None:
        """Seat a client that proved its address. It is judged again: time has passed since the request."""
        verdict = self._token_check.judge(event.client_id, event.user_data)
        if isinstance(verdict, LookUp):
            verdict = self._grants.pop(event.token_tag, Refusal(403, "its session is not known"))
        if isinstance(verdict, Grant):
            verdict = (
                self._roster.banned(verdict, str(event.address))
                or self._roster.refusal(event.client_id, verdict)
                or verdict
            )
        if isinstance(verdict, Refusal):
            log.info("refused %s: %s", event.address, verdict.text)
            if event.framed:
                self._channels[event.index] = MessageChannel()
            self.disconnect(event.index, CloseCode.POLICY, verdict.text)
            return
        channel = MessageChannel() if event.framed else None
        if channel is not None:
            self._channels[event.index] = channel
        player = self._roster.seat(verdict, UdpLink(self, event.index, event.address, channel))
        self._players[event.index] = player
        self._roster.joined(player)

    def _look_up_later(self, request: AdmitRequest) -> None:
        """Netcode passes each request on once: one that is dropped here would never be answered."""
        if self._look_ups < MAX_LOOK_UPS:
            self._look_ups += 1
            self._tasks.start(self._look_up_from(request), "look-up")
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(request)
        else:
            self._netcode.deny(request.id, Denial(BUSY.deny), self._now())

    async def _look_up_from(self, request: AdmitRequest) -> None:
        """This look-up, then those that wait."""
        try:
            await self._look_up(request)
            while self._waiting:
                await self._look_up(self._waiting.popleft())
        finally:
            self._look_ups -= 1

    async def _look_up(self, request: AdmitRequest) -> None:
        found = await self._roster.look_up(request.client_id)
        now = self._now()
        if isinstance(found, Refusal):
            log.info("refused %s: %s", request.address, found.text)
            self._netcode.deny(request.id, Denial(found.deny), now)
        else:
            if len(self._grants) >= MAX_GRANTS:
                self._grants.clear()
            self._grants[request.token_tag] = found
            self._netcode.admit(request.id, now)
        self._flush()
