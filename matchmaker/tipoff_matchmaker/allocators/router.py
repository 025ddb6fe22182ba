"""Which allocator finds the seats of a game: the one that its `orchestrator` in games.toml asks for.

Where our own ledger counts the seats, that is the `SeatAllocator`. `edgegap-sessions` counts them at Edgegap.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from tipoff_matchmaker.allocators.interface import Allocation, Allocator, Seats, Step
from tipoff_shared.games import GameKey


class Allocators:
    """`others`: the allocators of those games that have one of their own; `usual` is everybody else's."""

    def __init__(self, usual: Allocator, others: Mapping[GameKey, Allocator]) -> None:
        self._usual = usual
        self._others = dict(others)

    def of(self, key: GameKey) -> Allocator:
        return self._others.get(key, self._usual)

    def allocate(self, allocation: Allocation) -> AsyncGenerator[Step, None]:
        return self.of(allocation.key).allocate(allocation)

    async def undo(self, seats: Seats) -> None:
        await self.of((seats.deployment.game, seats.deployment.version)).undo(seats)
