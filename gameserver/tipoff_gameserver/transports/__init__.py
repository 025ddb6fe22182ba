"""The ways in, side by side: one driver per kind of socket, all for one list of players.

A transport proves who comes (by `Admission`), asks the server for a seat, and passes on what happens. It never waits
for the game and never makes the game wait.
"""

from __future__ import annotations

from typing import Protocol

from tipoff_gameserver.players.admission import Admission, Grant, Refusal
from tipoff_gameserver.players.roster import LeaveReason, Link, Player


class Host(Protocol):
    """The game server, as its transports see it."""

    @property
    def admission(self) -> Admission: ...

    @property
    def tick_rate(self) -> float: ...

    def refusal(self, client_id: int | None) -> Refusal | None:
        """Why this client (None: any) may not come in now (full, playing already, about to end), or None."""
        ...

    async def look_up(self, client_id: int) -> Grant | Refusal:
        """The session of a client with a token of bevygap's matchmaker."""
        ...

    def seat(self, grant: Grant, link: Link) -> Player:
        """Take a seat, after `refusal` had nothing to say."""
        ...

    def joined(self, player: Player) -> None:
        """The player knows that it is in: the game may speak to it."""
        ...

    def received(self, player: Player, data: bytes) -> None:
        """1 to 1200 bytes from the player."""
        ...

    def left(self, player: Player, reason: LeaveReason) -> None:
        """The connection is gone. Idempotent."""
        ...


class Transport(Protocol):
    """A started listener."""

    @property
    def port(self) -> int:
        """The port it listens on."""
        ...

    def housekeeping(self, now: float) -> None:
        """Called about once a second (`now`: the event loop's time)."""
        ...

    async def close(self) -> None:
        """Let go of the sockets, after the server hung up on everybody; a few seconds at most. Idempotent."""
        ...
