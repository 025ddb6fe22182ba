"""The players: what a game sees of each, and who holds which seat on whatever transport."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import StrEnum
from typing import Any, Protocol

from tipoff_gameserver.players.admission import Grant, Refusal
from tipoff_shared.netcode import MAX_PAYLOAD_BYTES, DenyReason

MAX_MESSAGE_BYTES = MAX_PAYLOAD_BYTES
"""Longest message in either direction, on every transport: what fits into one netcode packet."""


class LeaveReason(StrEnum):
    """Why a player is gone, as `on_leave` is told. Each is a `str`."""

    LEFT = "left"  # by itself
    TIMED_OUT = "timed out"  # nothing was heard for too long
    KICKED = "kicked"  # by the game, by the matchmaker, or because on_join failed
    TOO_SLOW = "too slow"  # stopped reading what we send
    MISBEHAVED = "misbehaved"  # broke the protocol
    CLOSED = "closed"  # the server ends


class Link(Protocol):
    """One client's connection, as its transport implements it. Nothing here blocks or raises."""

    @property
    def transport(self) -> str: ...

    @property
    def address(self) -> str: ...

    @property
    def rtt(self) -> float | None: ...

    def send(self, data: bytes) -> None: ...

    def close(self, code: int, reason: str) -> None:
        """Hang up. The transport tells nobody about the end of a link that was closed this way."""
        ...


class Kicker(Protocol):
    def kick(self, player: Player, reason: str) -> None: ...


class Player:
    """One connected player. Compare players by identity; keep whatever you like in `data`."""

    __slots__ = (
        "_kicker",
        "_link",
        "client_id",
        "connected",
        "data",
        "id",
        "messages_dropped",
        "messages_this_second",
        "name",
        "session_id",
    )

    def __init__(self, id: int, grant: Grant, link: Link, kicker: Kicker) -> None:
        self.id = id
        """1, 2, 3, ... in the order of arrival; never used twice by one server process. Good for your wire format."""
        self.client_id = grant.client_id
        """netcode's 64-bit client id, from the token."""
        self.session_id = grant.session_id
        """The matchmaker's session; "" for a token of another matchmaker in stand-alone mode."""
        self.name = grant.name
        """What the matchmaker's login hook put into the token, else ""."""
        self.connected = True
        """False as soon as the player is gone, even before `on_leave` was called."""
        self.data: Any = None
        """Yours: the square, the score, the whole state of this player."""
        self.messages_dropped = 0
        """Messages of this player that were thrown away because it sent too many."""
        self.messages_this_second = 0
        self._link = link
        self._kicker = kicker

    @property
    def transport(self) -> str:
        """`udp` or `websocket`."""
        return self._link.transport

    @property
    def address(self) -> str:
        """Where the player is, `ip:port`."""
        return self._link.address

    @property
    def rtt(self) -> float | None:
        """Round-trip time in seconds, where the transport measures it (WebSocket), else None."""
        return self._link.rtt

    def send(self, data: bytes) -> None:
        """Send 1 to 1200 bytes; raises `ValueError` for any other length. Never waits, and does nothing once the
        player is gone.

        Over UDP a message may be lost, doubled or overtaken. Over WebSocket it arrives in order, unless the player
        reads so slowly that messages have to be dropped.
        """
        if not 0 < len(data) <= MAX_MESSAGE_BYTES:
            raise ValueError(f"a message has 1 to {MAX_MESSAGE_BYTES} bytes, not {len(data)}")
        if self.connected:
            self._link.send(data)

    def kick(self, reason: str = "") -> None:
        """Throw the player out. `on_leave` follows; `reason` (for people) reaches WebSocket clients only."""
        if self.connected:
            self._kicker.kick(self, reason)

    def hang_up(self, code: int, reason: str) -> None:
        """For the server alone: close the connection without any bookkeeping. Games call `kick`."""
        self._link.close(code, reason)

    def __repr__(self) -> str:
        state = "" if self.connected else ", gone"
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
        """For the server alone."""
        self._by_id[player.id] = player
        self._snapshot = None

    def leave(self, player: Player) -> None:
        """For the server alone."""
        if self._by_id.pop(player.id, None) is not None:
            self._snapshot = None


FULL = Refusal(503, "the server is full", DenyReason.FULL)
CONNECTED_ALREADY = Refusal(409, "this client is playing here already", DenyReason.ALREADY_CONNECTED)


class Roster:
    """The seats: one list and one capacity for all transports, always up to date.

    A seat is taken when a transport lets a client in and free when its connection is gone, whatever the game has
    been told by then.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._by_client_id: dict[int, Player] = {}
        self._next_id = 1

    def __len__(self) -> int:
        return len(self._by_client_id)

    def __iter__(self) -> Iterator[Player]:
        return iter(tuple(self._by_client_id.values()))

    @property
    def has_room(self) -> bool:
        return len(self._by_client_id) < self.capacity

    def is_connected(self, client_id: int) -> bool:
        return client_id in self._by_client_id

    def refusal(self, client_id: int | None) -> Refusal | None:
        """Why this client (None: any client) cannot have a seat now, or None."""
        if client_id is not None and client_id in self._by_client_id:
            return CONNECTED_ALREADY
        return None if self.has_room else FULL

    def seat(self, grant: Grant, link: Link, kicker: Kicker) -> Player:
        """Give a seat; only when `refusal` has nothing to say."""
        player = Player(self._next_id, grant, link, kicker)
        self._next_id += 1
        self._by_client_id[grant.client_id] = player
        return player

    def free(self, player: Player) -> bool:
        """Take the seat back; False when it was free already."""
        if self._by_client_id.get(player.client_id) is not player:
            return False
        del self._by_client_id[player.client_id]
        return True

    def by_session(self, session_id: str) -> Player | None:
        return next((p for p in self._by_client_id.values() if p.session_id == session_id), None)
