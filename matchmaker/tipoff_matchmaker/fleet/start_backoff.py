"""Decides when a game's next server may be started, after starts that failed. In memory, pure.

Times are monotonic seconds, except `failed_at`, which is compared with records (Unix seconds).
"""

from __future__ import annotations

from dataclasses import dataclass

from tipoff_shared.primitives.retry import backoff

_NO_CAPACITY_PAUSE = 3.0
_LONGEST_PAUSE = 10.0
_LONGEST_NO_CAPACITY_PAUSE = 30.0


SHORT_LIFE = 10.0
"""Seconds after which a server that became ready counts as one that works."""


@dataclass(slots=True)
class StartBackoff:
    """`failures`: starts that failed one after another since the last server became ready. `crashes`: servers that
    ended by themselves soon after they were ready, one after another. `reason`: why the last of both. `not_before`: no
    start before this. `no_room`: what the orchestrator said when it had no room for another server, "" while it has."""

    failures: int = 0
    crashes: int = 0
    reason: str = ""
    failed_at: float = 0.0
    not_before: float = 0.0
    no_room: str = ""

    def ready(self) -> None:
        """A server is ready: earlier failures no longer count."""
        self.failures, self.no_room = 0, ""

    def ended(self, lived: float, reason: str, monotonic: float, first_pause: float) -> None:
        """A server has ended by itself, `lived` seconds after it was ready."""
        if lived >= SHORT_LIFE:
            self.crashes = 0
            return
        self.crashes, self.reason = self.crashes + 1, reason
        if self.crashes > 1:  # the first one may be an accident
            self._wait(monotonic + backoff(self.crashes - 1, first_pause, longest=_LONGEST_PAUSE))

    def no_capacity(self, reason: str, monotonic: float, retry_after: float | None) -> None:
        """The orchestrator has no room now; that does not count as a failure of the game."""
        self.no_room = reason
        first = retry_after or _NO_CAPACITY_PAUSE
        self._wait(monotonic + backoff(1, first, retry_after=retry_after, longest=_LONGEST_NO_CAPACITY_PAUSE))

    def failed(
        self, planned_at: float, now: float, monotonic: float, first_pause: float, retry_after: float | None
    ) -> None:
        """A start failed. Servers started together fail together: those count as one failure."""
        if planned_at > self.failed_at:
            self.failures += 1
            self.failed_at = now
        delay = backoff(self.failures, first_pause, retry_after=retry_after, longest=_LONGEST_PAUSE)
        self._wait(monotonic + delay)

    def orchestrator_is_back(self) -> None:
        """Starts that failed because it was away are not waited for; servers that crash still are."""
        if self.crashes <= 1:
            self.not_before = 0.0

    def _wait(self, until: float) -> None:
        self.not_before = max(self.not_before, until)
