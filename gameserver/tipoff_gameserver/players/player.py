"""Defines what a game sees of its players: `Player`, `Players` and `LeaveReason`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from typing import Any, Protocol

from tipoff_gameserver.players.token_check import Grant
from tipoff_shared.framing import message_bytes
from tipoff_shared.netcode import MAX_PAYLOAD_BYTES

MAX_PLAIN_BYTES = MAX_PAYLOAD_BYTES
"""Longest message of a client that has not said that it takes longer ones: what fits into one netcode packet."""


class LeaveReason(StrEnum):
    """Why a player has left, as passed to `on_leave`. Each is a `str`."""

    LEFT = "left"  # by itself
    TIMED_OUT = (
        "timed out"  # nothing was heard for too long, and it did not come back while its seat was held
    )
    KICKED = "kicked"  # by the game, by the matchmaker, or because on_join failed
    TOO_SLOW = "too slow"  # stopped reading what we send
    MISBEHAVED = "misbehaved"  # broke the protocol, or sent far too much
    CLOSED = "closed"  # the server ends


class Link(Protocol):
    """One client's connection, as its transport implements it. No method blocks or raises."""

    @property
    def transport(self) -> str:
        """`udp` or `websocket`."""
        ...

    @property
    def address(self) -> str:
        """Where the client is, `ip:port`."""
        ...

    @property
    def rtt(self) -> float | None:
        """Round-trip time in seconds; None where it is not measured."""
        ...

    @property
    def max_message(self) -> int:
        """Bytes of the longest message that the client takes."""
        ...

    @property
    def reliable(self) -> bool:
        """Whether reliable messages surely arrive."""
        ...

    def send(self, data: bytes, reliable: bool = False) -> None:
        """Send one message, or drop it. A reliable one that finds no room ends the connection (`TOO_SLOW`)."""
        ...

    def close(self, code: int, reason: str) -> None:
        """Hang up. The transport reports no end of a link that was closed this way."""
        ...


class LostLink:
    """Stands in for a connection that was lost, while its player's seat is held: what is sent goes nowhere."""

    __slots__ = ("address", "max_message", "reliable", "transport")

    rtt: float | None = None

    def __init__(self, link: Link) -> None:
        self.transport = link.transport
        self.address = link.address
        self.max_message = link.max_message
        self.reliable = link.reliable

    def send(self, data: bytes, reliable: bool = False) -> None:
        """Nothing."""

    def close(self, code: int, reason: str) -> None:
        """Nothing."""


class Player:
    """One player with a seat. Compare players by identity; keep whatever you like in `data`.

    A player whose connection is lost stays the same object while its seat is held (`dropped`), and when it comes back.
    """

    __slots__ = (
        "_kick",
        "client_id",
        "connected",
        "data",
        "dropped",
        "generation",
        "id",
        "link",
        "max_message",
        "messages_dropped",
        "messages_this_second",
        "name",
        "resume_ttl",
        "returns",
        "session_id",
        "user_id",
    )

    def __init__(self, id: int, grant: Grant, link: Link, kick: Callable[[Player, str], None]) -> None:
        self.id = id
        """1, 2, 3, ... in the order of arrival; never used twice by one server process. Good for your wire format."""
        self.client_id = grant.client_id
        """netcode's 64-bit client id, from the token."""
        self.session_id = grant.session_id
        """The matchmaker's session; "" for a token of another matchmaker in stand-alone mode."""
        self.user_id = grant.user_id
        """Who this is, by the login at httpd: at most 64 bytes, the same in every game. "" without a login, in
        stand-alone mode and for bevygap's tokens."""
        self.name = grant.name
        """What to call it, at most 48 bytes on one line: the login's name, else what the client proposed, which anybody
        may; "" when neither said one. Two players may have the same."""
        self.connected = True
        """False while the connection is lost, and for good as soon as the player has left, even before `on_leave` was
        called."""
        self.dropped = False
        """True while the connection is lost and the seat is held: between `on_drop` and `on_resume` or `on_leave`."""
        self.returns = 0
        """How often the player has come back by a new connection."""
        self.resume_ttl = grant.resume_ttl
        """Seconds for which the seat is held after a lost connection; 0: not at all."""
        self.generation = grant.generation
        """The token's, for the server: of two connections the one of the newer token stays."""
        self.data: Any = None
        """Yours: the square, the score, the whole state of this player."""
        self.messages_dropped = 0
        """Messages of this player that were dropped because it sent too many."""
        self.messages_this_second = 0
        """Counted by the server against `message_limit`."""
        self.max_message = link.max_message
        """Bytes of the longest message to this player: 65536, or 1200 for a client that does not know longer ones."""
        self.link = link
        """The connection, for the server. Games use `send` and `kick`."""
        self._kick = kick

    @property
    def transport(self) -> str:
        """`udp` or `websocket`."""
        return self.link.transport

    @property
    def address(self) -> str:
        """Where the player is, `ip:port`."""
        return self.link.address

    @property
    def rtt(self) -> float | None:
        """Round-trip time in seconds, where the transport measures it (WebSocket), else None."""
        return self.link.rtt

    @property
    def reliable(self) -> bool:
        """Whether `send(..., reliable=True)` holds what it says; False for a client by UDP without tipoff's framing
        (another netcode client, an older SDK), which gets such messages as ordinary ones."""
        return self.link.reliable

    def send(self, data: bytes, *, reliable: bool = False) -> None:
        """Send 1 to 65536 bytes (`max_message`). Never waits, and does nothing while the player's connection is lost
        and once it has left: nothing is kept for later, reliable or not. Send in `on_resume` what a player who comes
        back must know; of what was sent just before the loss, nobody knows what arrived.

        A reliable message arrives, in order with all reliable ones. A player who has not taken 1 MiB or 1024 of them
        leaves with `LeaveReason.TOO_SLOW`. Another message may be lost or overtaken over UDP, the more likely the
        longer it is (over 1200 bytes it travels in pieces); over WebSocket it arrives in order, unless the player reads
        so slowly that messages have to be dropped.

        Raises `MessageTooLarge`, `EmptyMessage` (both a `ValueError`), `TypeError` for anything but bytes;
        nothing is sent then.
        """
        if type(data) is not bytes or not 0 < len(data) <= self.max_message:
            data = message_bytes(data, self.max_message)
        if self.connected:
            self.link.send(data, reliable)

    def kick(self, reason: str = "") -> None:
        """Remove the player, connected or dropped. `on_leave` follows; `reason` (for people, at most 123 bytes) reaches
        the player, with close code 4000; by UDP a client that knows tipoff's framing."""
        if self.connected or self.dropped:
            self._kick(self, reason)

    def __repr__(self) -> str:
        state = "" if self.connected else ", dropped" if self.dropped else ", gone"
        return f"<Player {self.id} {self.transport} {self.address}{state}>"


class Players(Collection[Player]):
    """The players for whom `on_join` was called and `on_leave` was not yet. Looping over it is always safe: the
    loop sees those that were there when it began."""

    def __init__(self) -> None:
        self._by_id: dict[int, Player] = {}
        self._snapshot: tuple[Player, ...] | None = ()

    def get(self, id: int) -> Player | None:
        """The player with this `Player.id`, or None."""
        return self._by_id.get(id)

    def all(self) -> tuple[Player, ...]:
        """All players, in the order of their ids."""
        if self._snapshot is None:
            self._snapshot = tuple(self._by_id.values())
        return self._snapshot

    def __iter__(self) -> Iterator[Player]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, player: object) -> bool:
        return isinstance(player, Player) and self._by_id.get(player.id) is player

    def __repr__(self) -> str:
        return f"Players({list(self.all())})"

    def enter(self, player: Player) -> None:
        """Add a player. For the server only."""
        self._by_id[player.id] = player
        self._snapshot = None

    def leave(self, player: Player) -> None:
        """Remove a player. For the server only."""
        if self._by_id.pop(player.id, None) is not None:
            self._snapshot = None
