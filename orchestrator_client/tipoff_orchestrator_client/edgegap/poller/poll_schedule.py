"""Decides when to poll what is not ready yet: soon at first, then less often, and at once when a webhook arrives. Pure.

Many that are due together are polled by one list, a few by their status, which tells more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BY_STATUS = 2
"""Up to so many are polled one by one."""
_MAX_WAITING = 10_000


@dataclass(slots=True)
class _Waiting:
    since: float
    next_poll: float


@dataclass(slots=True)
class PollSchedule:
    """When each id is due. Times are seconds of the caller's clock.

    `first`: from adding an id to its first poll. Later intervals are half the time that it has waited, at least `first`
    and at most `slowest`.
    """

    first: float
    slowest: float
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _at_once: set[str] = field(default_factory=set)

    def add(self, id: str, now: float) -> None:
        """Poll `id` until it is removed; one that was added before keeps its place."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.setdefault(id, _Waiting(now, now + self.first))

    def poll_now(self, id: str) -> None:
        """Make `id` due once, whether it was added or not."""
        if len(self._at_once) < _MAX_WAITING:
            self._at_once.add(id)

    def remove(self, id: str) -> None:
        """Stop polling `id`; idempotent."""
        self._waiting.pop(id, None)

    @property
    def waiting(self) -> int:
        """How many ids were added and not removed."""
        return len(self._waiting)

    def next_at(self) -> float | None:
        """When an id is due next; None: never."""
        if self._at_once:
            return float("-inf")
        return min((one.next_poll for one in self._waiting.values()), default=None)

    def due(self, now: float) -> list[str]:
        """The ids to poll now. Each is due again later, unless it is removed by then."""
        due = [id for id, one in self._waiting.items() if one.next_poll <= now or id in self._at_once]
        due += [id for id in self._at_once if id not in self._waiting]
        self._at_once.clear()
        if len(due) > BY_STATUS:
            # One list answers for all, so it may answer for those as well that are due a little later.
            due = list(dict.fromkeys([*due, *self._waiting]))
        for id in due:
            if (one := self._waiting.get(id)) is not None:
                one.next_poll = now + min(self.slowest, max(self.first, (now - one.since) / 2))
        return due
