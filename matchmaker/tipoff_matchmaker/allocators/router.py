"""Routes each game to its allocator: the one that its `orchestrator` in games.toml asks for.

Where we count the seats ourselves, that is the `SeatAllocator`. `edgegap-sessions` counts them at Edgegap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping

from tipoff_matchmaker.allocators.interface import Allocator, Step
from tipoff_matchmaker.seats.allocation_request import AllocationRequest, Seats
from tipoff_shared.errors import TipoffError
from tipoff_shared.games import Game, GameKey, SomeGames
from tipoff_shared.records import SessionRecord


class Router:
    """`others`: orchestrator -> the allocator of its games; `usual` is that of all other games."""

    def __init__(self, usual: Allocator, games: SomeGames, others: Mapping[str, Allocator]) -> None:
        self._usual = usual
        self._others = dict(others)
        self._all = [usual, *self._others.values()]
        self._special: dict[GameKey, Allocator] = {}
        """Also of removed games: their sessions end later."""
        self._learn(games.all())
        games.subscribe(lambda change: self._learn(change.present))

    def _learn(self, games: Iterable[Game]) -> None:
        for game in games:
            if (allocator := self._others.get(game.orchestrator)) is not None:
                self._special[game.key] = allocator
            else:
                self._special.pop(game.key, None)

    def of(self, key: GameKey) -> Allocator:
        """The game's allocator."""
        return self._special.get(key, self._usual)

    def allocate(self, allocation: AllocationRequest) -> AsyncGenerator[Step, None]:
        """See `Allocator.allocate`."""
        return self.of(allocation.key).allocate(allocation)

    async def undo(self, seats: Seats) -> None:
        """See `Allocator.undo`."""
        await self.of((seats.deployment.game, seats.deployment.version)).undo(seats)

    async def release_seat(self, session: SessionRecord) -> None:
        """Give back the seat of an ended session; idempotent. Raises `TipoffError`."""
        allocator = self.of((session.game, session.version))
        await allocator.release(session.id, session.id, deployment_id=session.deployment_id)

    def close(self, error: TipoffError) -> None:
        """See `Allocator.close`."""
        for allocator in self._all:
            allocator.close(error)

    async def settle(self, timeout: float) -> None:
        """See `Allocator.settle`."""
        await asyncio.gather(*(allocator.settle(timeout) for allocator in self._all))
