"""Defines the seam to whatever counts seats: an `Allocator` finds seats for players, all or none, and takes them back.

`SeatAllocator` (seat_allocator.py) is the usual one: seats in our own deployment records, on servers that an
`Orchestrator` starts. Services that count seats themselves (Edgegap sessions, Agones) are allocators of their own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_shared.errors import TipoffError


@dataclass(frozen=True, slots=True)
class Progress:
    """What is going on, for people. `start_failed`: why a server they waited for did not start, "" if none failed."""

    text: str
    start_failed: str = ""


Step: TypeAlias = Progress | Seats


class Allocator(Protocol):
    """Finds seats for the games that are its own. Every call raises `TipoffError` only."""

    def allocate(self, allocation: AllocationRequest) -> AsyncGenerator[Step, None]:
        """Yields `Seats` as soon as there are any, and `Progress` until then. The first `Progress` comes before
        anything is started for this allocation, so that its record can be written first. Ends after `Seats`; waits
        without a limit: the deadline is the caller's. Closed early, it gives back what it holds."""
        ...

    async def undo(self, seats: Seats) -> None:
        """Give back seats that did not become sessions, unless another matchmaker may rely on them; those are left to
        their deadline. Idempotent."""
        ...

    async def release(self, allocation_id: str, member: str, *, deployment_id: str) -> None:
        """Give back the seat of a session that has ended; idempotent. `deployment_id` "": it never had a seat, but one
        may have been on its way."""
        ...

    async def sessions(self) -> set[str] | None:
        """The sessions that hold a seat, where the service can tell; None where it cannot."""
        ...

    def close(self, error: TipoffError) -> None:
        """This matchmaker stops: answer everybody who waits, and everybody who comes later, with `error`."""
        ...

    async def settle(self, timeout: float) -> None:
        """After `close`: return when what was begun is written down, after at most `timeout` seconds."""
        ...
