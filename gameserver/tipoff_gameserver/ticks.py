"""When ticks are due. Pure: times go in, deadlines come out.

Ticks lie on a grid that starts at `now`: a late tick does not move those after it, so the rate does not drift. A
server that falls behind makes up for it, one tick at a time; more than `MAX_BEHIND` ticks behind, it skips what it
missed instead of chasing it for ever (the spiral of death). Every tick still means the same `period` of game time,
so a server that skips runs slow rather than in jumps.
"""

from __future__ import annotations

MAX_BEHIND = 5
_WEIGHT = 1 / 16  # of a new sample in the mean tick time


class TickSchedule:
    """`rate` is in ticks per second, all times in seconds of one monotonic clock."""

    __slots__ = ("due", "period", "skipped", "tick_time", "ticks")

    def __init__(self, rate: float, now: float) -> None:
        self.period = 1.0 / rate
        self.due = now + self.period
        self.ticks = 0
        self.skipped = 0
        self.tick_time = 0.0
        """Mean seconds that one tick took lately."""

    def restart(self, now: float) -> None:
        """The grid begins now."""
        self.due = now + self.period

    def begin(self) -> None:
        """The tick that was due is run now."""
        self.ticks += 1
        self.due += self.period

    def measured(self, seconds: float) -> None:
        """How long the tick took."""
        weight = _WEIGHT if self.ticks > 1 else 1.0
        self.tick_time += (seconds - self.tick_time) * weight

    def skip_missed(self, now: float) -> int:
        """Give up ticks that are too far behind; how many. Call it before waiting for `due`."""
        behind = int((now - self.due) / self.period)
        if behind < MAX_BEHIND:
            return 0
        self.due += behind * self.period
        self.skipped += behind
        return behind
