"""The seam to whatever counts seats: an `Allocator` finds seats for players, all or none, and takes them back.

`SeatAllocator` (seat_allocator.py) is the usual one: our own ledger, on servers that an `Orchestrator` starts.
Services that count seats themselves (Edgegap sessions, Agones) are allocators of their own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tipoff_shared.games import GameKey
from tipoff_shared.records import DeploymentRecord


@dataclass(frozen=True, slots=True)
class Allocation:
    """Seats wanted for `members` (session ids) together on one server. `client_ips`, `regions`: where they are."""

    id: str
    members: tuple[str, ...]
    game: str
    version: str
    client_ips: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    @property
    def key(self) -> GameKey:
        return (self.game, self.version)


@dataclass(frozen=True, slots=True)
class Progress:
    """For people: what is going on. `start_failed`: a server they waited for did not start, for this reason."""

    text: str
    start_failed: str = ""


@dataclass(frozen=True, slots=True)
class Seats:
    """One seat for each member, on `deployment`, written down; it counts until `until` (Unix seconds) without a
    session record. `shared`: a member sat there already, so the seat may be another matchmaker's too."""

    members: tuple[str, ...]
    deployment: DeploymentRecord
    until: float
    shared: bool = False


Step: TypeAlias = Progress | Seats


class Allocator(Protocol):
    """Every call raises `TipoffError` only."""

    def allocate(self, allocation: Allocation) -> AsyncGenerator[Step, None]:
        """Seats as soon as there are any; until then what is going on. The first `Progress` comes before anything
        is started for this allocation, so that its record can be written first. Ends after `Seats`; waits for as
        long as it is asked to: the deadline is the caller's. Closed early, it takes back what it holds."""
        ...

    async def undo(self, seats: Seats) -> None:
        """Give back seats that did not become sessions, where nobody else can have come to count on them; others
        are left to their deadline. Idempotent."""
        ...

    async def release(self, allocation_id: str, member: str, *, deployment_id: str) -> None:
        """Give back the seat of a session that has ended; idempotent. `deployment_id` "": it has never had one, but
        one may have been on its way."""
        ...

    async def sessions(self) -> set[str] | None:
        """The sessions that hold a seat, where the service can tell; None where it cannot."""
        ...
