"""Chooses, purely, the deployment that the next player gets a seat on: the fullest that has room."""

from __future__ import annotations


class Packing:
    """Chooses the deployment to fill next: the fullest that has room, so that empty ones can stop.

    The caller subtracts the seats that are about to be written. Every operation takes constant time, except for the
    number of different free counts.
    """

    def __init__(self) -> None:
        self._free: dict[str, int] = {}
        self._by_free: dict[int, dict[str, None]] = {}

    def set(self, deployment_id: str, free: int) -> None:
        """`free` seats may be given out there (0 or less: none)."""
        old = self._free.get(deployment_id)
        if old == free:
            return
        if old is not None:
            bucket = self._by_free[old]
            del bucket[deployment_id]
            if not bucket:
                del self._by_free[old]
        if free <= 0:
            self._free.pop(deployment_id, None)
            return
        self._free[deployment_id] = free
        self._by_free.setdefault(free, {})[deployment_id] = None

    def pick(self, count: int, *, same_everywhere: bool = False) -> str | None:
        """The deployment with the fewest free seats that still has `count`; among equals the oldest known, or
        (`same_everywhere`, which looks at all of those) the one that every process picks."""
        free = min((n for n in self._by_free if n >= count), default=None)
        if free is None:
            return None
        return min(self._by_free[free]) if same_everywhere else next(iter(self._by_free[free]))

    @property
    def free(self) -> int:
        """All free seats together."""
        return sum(self._free.values())
