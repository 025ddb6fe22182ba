"""Decides, purely, whether a failing service may be called: after several failures in a row not for a while, then once.

    closed ──`threshold` failures in a row──> open ──the pause is over──> half-open, one call is let through
       ^                                       ^                              │
       └────────────── it answers ─────────────┼──────────────────────────────┤
                                               └── it fails: a longer pause ──┘

Times are seconds of whatever clock the caller reads; nothing here reads one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class BreakerState(StrEnum):
    """Closed: calls are made. Open: none is. Half-open: one trial call is."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


@dataclass(slots=True)
class Breaker:
    """One kind of call to one other side.

    `threshold`: failures in a row that open it. `first_pause`: how long it then stays open, doubled with each trial
    that fails, up to `longest_pause`; longer where the other side says so (Retry-After), up to `longest_asked`. A
    trial that has not ended after `trial_timeout` counts for nothing, and another one is let through.
    """

    threshold: int = 5
    first_pause: float = 2.0
    longest_pause: float = 30.0
    longest_asked: float = 60.0
    trial_timeout: float = 30.0
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    """In a row."""
    last_error: str = ""
    retry_at: float = 0.0
    """Open: when a trial is let through. Half-open: when another one is."""
    _opened: int = field(default=0, repr=False)
    _asked_until: float = field(default=float("-inf"), repr=False)

    def state_at(self, now: float) -> BreakerState:
        """The state, with an open breaker whose pause is over as half-open: the next call tries the other side. `state`
        itself changes only with that call, which may be long in coming."""
        over = self.state is BreakerState.OPEN and now >= self.retry_at
        return BreakerState.HALF_OPEN if over else self.state

    def wait(self, now: float) -> float:
        """Seconds until a call would be let through; 0: now."""
        return 0.0 if self.state is BreakerState.CLOSED else max(0.0, self.retry_at - now)

    def admit(self, now: float) -> float:
        """0 when the call may be made (it must then be followed by `succeeded`, `failed` or `abandoned`), else the
        seconds to wait."""
        if self.state is BreakerState.CLOSED:
            return 0.0
        if now < self.retry_at:
            return self.retry_at - now
        self.state, self.retry_at = BreakerState.HALF_OPEN, now + self.trial_timeout
        return 0.0

    def succeeded(self) -> None:
        """The other side has answered, be it a no. Also for a call from before it opened."""
        self.state, self.failures, self._opened = BreakerState.CLOSED, 0, 0
        self.last_error, self.retry_at, self._asked_until = "", 0.0, float("-inf")

    def failed(self, now: float, error: str, retry_after: float | None = None) -> None:
        """No answer, or none that can be used, or "not now"."""
        self.failures += 1
        self.last_error = error
        asked = now + min(retry_after or 0.0, self.longest_asked)
        if retry_after:
            self._asked_until = max(self._asked_until, asked)
        if self.state is BreakerState.OPEN:
            return  # a call from before it opened tells nothing new
        if self.state is BreakerState.CLOSED and self.failures < self.threshold:
            return
        pause = min(self.longest_pause, self.first_pause * 2.0 ** min(self._opened, 20))
        self._opened += 1
        self.state, self.retry_at = BreakerState.OPEN, max(now + pause, asked)

    def let_through(self) -> None:
        """The other side is known to be back: the next call is the trial, whatever pause or trial there is now, unless
        the other side has asked for the pause itself. If it fails, pauses begin at the first again."""
        if self.state is not BreakerState.CLOSED:
            self._opened, self.retry_at = 0, self._asked_until

    def abandoned(self, now: float) -> None:
        """The caller has gone before there was an outcome: the next one is the trial."""
        if self.state is BreakerState.HALF_OPEN:
            self.retry_at = now
