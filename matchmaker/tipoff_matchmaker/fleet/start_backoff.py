"""What one game's fleet has been through lately, and what that means for those who wait. In memory, pure.

Times here are monotonic seconds, but for `failed_at`, which is compared with records (Unix seconds).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tipoff_matchmaker.backoff import pause
from tipoff_matchmaker.deployments.machine import is_coming, is_live
from tipoff_shared.games import Game
from tipoff_shared.records import DeploymentRecord

_NO_CAPACITY_PAUSE = 3.0
_LONGEST_PAUSE = 10.0
_LONGEST_NO_CAPACITY_PAUSE = 30.0


_REASON = 200


def brief(reason: str) -> str:
    """A reason that is fit for a record: one line, at most 200 characters (a server's last words may be long)."""
    line = " ".join(reason.split())
    return line if len(line) <= _REASON else line[: _REASON - 1] + "…"


@dataclass(slots=True)
class Outlook:
    """`failures`: starts that failed one after another since the last server became ready. `not_before`: no start
    before this. `no_room`: what the orchestrator said when it could not start any more, "" while it can."""

    failures: int = 0
    failed_at: float = 0.0
    not_before: float = 0.0
    no_room: str = ""

    def ready(self) -> None:
        """A server is ready: whatever was wrong is over."""
        self.failures, self.no_room = 0, ""

    def no_capacity(self, reason: str, monotonic: float, retry_after: float | None) -> None:
        """The orchestrator has no room now; that is no failure of the game."""
        self.no_room = reason
        first = retry_after or _NO_CAPACITY_PAUSE
        self._wait(monotonic + pause(1, first, retry_after=retry_after, longest=_LONGEST_NO_CAPACITY_PAUSE))

    def failed(
        self, planned_at: float, now: float, monotonic: float, first_pause: float, retry_after: float | None
    ) -> None:
        """A start failed. Servers started together fail together: those count as one failure."""
        if planned_at > self.failed_at:
            self.failures += 1
            self.failed_at = now
        delay = pause(self.failures, first_pause, retry_after=retry_after, longest=_LONGEST_PAUSE)
        self._wait(monotonic + delay)

    def _wait(self, until: float) -> None:
        self.not_before = max(self.not_before, until)


def explain(
    game: Game,
    fleet: Iterable[DeploymentRecord],
    outlook: Outlook,
    *,
    waited: float,
    position: int,
    start_failed: str,
    progress: str = "",
) -> str:
    """Why one waits, for people: for the one who stands at `position` in line since `waited` seconds. `progress`:
    what the start of a server is busy with, where that is known."""
    records = list(fleet)
    if start_failed:
        why = "A server did not start, trying another one"
    elif any(map(is_coming, records)):
        why = progress or "Starting a server"
    elif outlook.no_room:
        why = "There is no room for another server now, waiting for a seat"
    elif sum(map(is_live, records)) >= game.max_deployments:
        why = "All servers are full, waiting for a seat"
    else:
        why = "Starting a server"
    place = f", you are number {position} in line" if position > 1 else ""
    so_far = f" ({waited:.0f} s so far)" if waited >= 1 else ""
    return why + place + so_far
