"""Decides what a callback that does not return leads to: nobody new comes in, then the server ends.

    0 s ──── fine ──── lease TTL ──── draining ──── callback_timeout ──── the game has failed

An async callback that waits keeps the whole game from going on, though the event loop, and with it the lease, is well.
Pure: seconds go in, a verdict comes out. Nothing is decided while a developer has stopped the game in a debugger.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import Enum

_DEBUGGERS = ("pydevd", "debugpy")


class Verdict(Enum):
    """What to do with the server."""

    FINE = "fine"
    DRAIN = "drain"  # the game may come back, but takes nobody new
    END = "end"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the game may keep everybody waiting."""

    drain_after: float
    """Seconds after which nobody new is let in: the lease's TTL, as for a process that does not answer."""
    end_after: float | None
    """Seconds after which the server ends; None: never."""

    def judge(self, seconds: float) -> Verdict:
        """The game has not answered for `seconds`: the oldest of its calls began, or was due, that long ago."""
        if self.end_after is not None and seconds >= self.end_after:
            return Verdict.END
        return Verdict.DRAIN if seconds >= self.drain_after else Verdict.FINE


def in_development() -> bool:
    """Whether a debugger is attached, or Python runs in development mode (`python -X dev`)."""
    if sys.flags.dev_mode or sys.gettrace() is not None or any(name in sys.modules for name in _DEBUGGERS):
        return True
    monitoring = getattr(sys, "monitoring", None)  # from 3.12 on
    return monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None
