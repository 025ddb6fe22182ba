"""Remembers whose seats are held: players whose connection was lost, and until when they may come back. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Holds(Generic[T]):
    """Seats that are held. `now`: seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._until: dict[T, float] = {}

    def __contains__(self, player: T) -> bool:
        return player in self._until

    def hold(self, player: T, until: float) -> None:
        """The player's connection is lost; the seat waits until `until`."""
        self._until[player] = until

    def end(self, player: T) -> None:
        """The player is back, or the seat is given up; idempotent."""
        self._until.pop(player, None)

    def take_due(self, now: float) -> list[T]:
        """The players whose time is over, each once, in the order in which they were lost."""
        due = [player for player, until in self._until.items() if until <= now]
        for player in due:
            del self._until[player]
        return due
