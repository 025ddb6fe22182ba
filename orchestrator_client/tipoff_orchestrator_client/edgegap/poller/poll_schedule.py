"""When to look at deployments that are not ready yet, pure: soon at first, then slower; at once when a webhook calls.

Many that are due together are looked at by one list; a few by their status, which tells more.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BY_STATUS = 2
"""So many or fewer are looked at one by one."""
_MAX_WAITING = 10_000


@dataclass(slots=True)
class _Waiting:
    since: float
    next_look: float


@dataclass(slots=True)
class Looks:
    """`first`: seconds until the first look at one; then each time half as long as it has been waited for, between
    `first` and `slowest`. Times are seconds of the caller's clock."""

    first: float
    slowest: float
    _waiting: dict[str, _Waiting] = field(default_factory=dict)
    _called: set[str] = field(default_factory=set)

    def wait_for(self, deployment_id: str, now: float) -> None:
        """It has been ordered; look until it is `done`."""
        if len(self._waiting) < _MAX_WAITING:
            self._waiting.setdefault(deployment_id, _Waiting(now, now + self.first))

    def call(self, deployment_id: str) -> None:
        """Look at it now, whether it is waited for or not."""
        if len(self._called) < _MAX_WAITING:
            self._called.add(deployment_id)

    def done(self, deployment_id: str) -> None:
        self._waiting.pop(deployment_id, None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def next_at(self) -> float | None:
        """When something is due; None: nothing is waited for."""
        if self._called:
            return float("-inf")
        return min((one.next_look for one in self._waiting.values()), default=None)

    def due(self, now: float) -> list[str]:
        """Those to look at now; they are due again later, unless they are `done` by then."""
        due = [id for id, one in self._waiting.items() if one.next_look <= now or id in self._called]
        due += [id for id in self._called if id not in self._waiting]
        self._called.clear()
        if len(due) > BY_STATUS:
            # One list tells of all, so those a little later are looked at as well.
            due = list(dict.fromkeys([*due, *self._waiting]))
        for id in due:
            if (one := self._waiting.get(id)) is not None:
                one.next_look = now + min(self.slowest, max(self.first, (now - one.since) / 2))
        return due
