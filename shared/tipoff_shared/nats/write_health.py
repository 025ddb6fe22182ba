"""Remembers which streams take writes, for one connection to NATS: a circuit breaker for each stream.

nats-server may be connected, answer reads, and write nothing: its disk is full, or was full once (2.15.1 then answers
no write of that stream any more until it is restarted, while writes of other streams work). Without a breaker each
write waits for its whole time-out. With it the first one does; the others fail at once, and one after another tries.
"""

from __future__ import annotations

import logging

from tipoff_shared.primitives.circuit_breaker import Breaker, BreakerState

log = logging.getLogger(__name__)

TRIAL_TIMEOUT = 2.0
"""Seconds that a write may take which finds out whether the stream works again."""
UNSTEADY = 5.0
"""Seconds after a failed write for which a stream counts as failing, whatever succeeds meanwhile: on a full disk short
writes may still fit where longer ones do not."""
_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 1.0
_NAMED = 4
"""Streams that a text names, the first ones used: on a full disk none works, and the reason must not be lost behind
their names."""


class StreamWrites:
    """Whether one stream takes writes. The caller reads the clock (`now`: monotonic seconds); each write that was
    admitted ends with `succeeded`, `failed` or `undecided`."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self._breaker = Breaker(1, _FIRST_PAUSE, _LONGEST_PAUSE, trial_timeout=TRIAL_TIMEOUT + 1)
        self._failed_at = float("-inf")
        self._error = ""
        self._told = False

    @property
    def well(self) -> bool:
        """Whether the last write whose outcome is known succeeded, and the log says so: nothing to ask or to note."""
        return self._breaker.state is BreakerState.CLOSED and not self._told

    def wait(self, now: float) -> float:
        """Seconds until a write would be let through; 0: now."""
        return self._breaker.wait(now)

    def admit(self, now: float) -> float:
        """0 when a write may be made, else the seconds to wait."""
        return self._breaker.admit(now)

    def succeeded(self, now: float) -> None:
        """A write was acknowledged."""
        self._breaker.succeeded()
        if self._told and not self.problem(now):
            self._told = False
            log.warning("NATS writes to %s again", self.stream)

    def failed(self, now: float, error: str) -> None:
        """A write was not acknowledged in time, or was refused for a reason that lies with the server."""
        self._breaker.failed(now, error)
        self._failed_at, self._error = now, error
        if not self._told:
            self._told = True
            log.error("NATS does not write to %s: %s", self.stream, error)

    def let_through(self) -> None:
        """Forget the pause: the next write is made."""
        self._breaker.let_through()

    def undecided(self, now: float) -> None:
        """The write ended in a way that says nothing about the server's disk."""
        self._breaker.abandoned(now)

    def problem(self, now: float) -> str:
        """Why writes fail at present; "" when they do not."""
        failing = self._breaker.state is not BreakerState.CLOSED or now < self._failed_at + UNSTEADY
        return self._error if failing else ""


class WriteHealth:
    """All streams that this connection has written to."""

    def __init__(self) -> None:
        self._streams: dict[str, StreamWrites] = {}

    def of(self, stream: str) -> StreamWrites:
        """The one of `stream`: the same object at each call."""
        return self._streams.setdefault(stream, StreamWrites(stream))

    def reconnected(self) -> None:
        """A new connection, perhaps to a restarted server: the next write of each stream is let through."""
        for writes in self._streams.values():
            writes.let_through()

    def problem(self, now: float) -> str:
        """Which streams do not take writes, and why, in one line for people; "" when all do."""
        found = {stream: writes.problem(now) for stream, writes in self._streams.items()}
        failing = [stream for stream, error in found.items() if error]
        if not failing:
            return ""
        names = ", ".join(stream.removeprefix("KV_") for stream in failing[:_NAMED])
        if len(failing) > _NAMED:
            names += f" and {len(failing) - _NAMED} more"
        return f"NATS does not write to {names}: {found[failing[0]]}"
