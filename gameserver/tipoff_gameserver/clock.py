"""Runs the game's ticks on time.

Ticks lie on a grid: a late tick does not move those after it, so the rate does not drift. A server that falls behind
catches up one tick at a time; once it is `MAX_BEHIND` ticks behind it skips what it missed instead of chasing it for
ever (the spiral of death). Every tick still means the same `period` of game time, so a server that skips runs slow
rather than in jumps.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tipoff_gameserver.failures import GameFailures
from tipoff_gameserver.players.dispatch import Dispatcher
from tipoff_gameserver.throttled_log import ThrottledLog

MAX_BEHIND = 5
_WEIGHT = 1 / 16  # of a new sample in the mean tick time


class TickSchedule:
    """When ticks are due. Pure: times go in, deadlines come out.

    `rate` is in ticks per second; all times are seconds of one monotonic clock.
    """

    __slots__ = ("due", "period", "skipped", "tick_time", "ticks")

    def __init__(self, rate: float, now: float) -> None:
        self.period = 1.0 / rate
        self.due = now + self.period
        self.ticks = 0
        self.skipped = 0
        self.tick_time = 0.0
        """Mean seconds that one tick took lately."""

    def restart(self, now: float) -> None:
        """Start the grid now."""
        self.due = now + self.period

    def begin(self) -> None:
        """The tick that was due runs now."""
        self.ticks += 1
        self.due += self.period

    def measured(self, seconds: float) -> None:
        """The tick took this many seconds."""
        weight = _WEIGHT if self.ticks > 1 else 1.0
        self.tick_time += (seconds - self.tick_time) * weight

    def skip_missed(self, now: float) -> int:
        """Skip ticks that are too far behind, and return how many. Call it before waiting for `due`."""
        behind = int((now - self.due) / self.period)
        if behind < MAX_BEHIND:
            return 0
        self.due += behind * self.period
        self.skipped += behind
        return behind


class Clock:
    """Calls `tick` at `rate` ticks per second through the dispatcher, one tick at a time.

    `failures` hears how each tick ended. Between two ticks the event loop always gets its turn, however late they are.
    """

    def __init__(
        self,
        tick: Callable[[], Any],
        rate: float,
        dispatcher: Dispatcher,
        failures: GameFailures,
        throttled_log: ThrottledLog,
    ) -> None:
        self._tick = tick
        self._loop = asyncio.get_running_loop()
        self._dispatcher = dispatcher
        self._failures = failures
        self._log = throttled_log
        self._handle: asyncio.TimerHandle | None = None
        self._stopped = False
        self.schedule = TickSchedule(rate, self._loop.time())

    def start(self) -> None:
        """Start ticking; the first tick is one period from now."""
        self.schedule.restart(self._loop.time())
        self._plan()

    def stop(self) -> None:
        """Start no further tick. Idempotent."""
        self._stopped = True
        if self._handle is not None:
            self._handle.cancel()

    def _plan(self) -> None:
        schedule = self.schedule
        if skipped := schedule.skip_missed(self._loop.time()):
            self._log.warning(
                "overload",
                "too slow: a tick takes %.1f ms of the %.1f ms there are; %d ticks skipped (%d in all)",
                schedule.tick_time * 1000,
                schedule.period * 1000,
                skipped,
                schedule.skipped,
            )
        self._handle = self._loop.call_at(schedule.due, self._is_due)

    def _is_due(self) -> None:
        self._dispatcher.post("tick", self._run)

    def _run(self) -> Awaitable[None] | None:
        if self._stopped:
            return None
        self.schedule.begin()
        began = time.perf_counter()
        try:
            result = self._tick()
        except Exception as exc:
            self._failures.tick_failed(exc)
        else:
            if result is not None and inspect.isawaitable(result):
                return self._finish(result, began)
            self._failures.tick_succeeded()
        self._done(began)
        return None

    async def _finish(self, result: Awaitable[Any], began: float) -> None:
        try:
            await result
        except Exception as exc:
            self._failures.tick_failed(exc)
        else:
            self._failures.tick_succeeded()
        finally:
            self._done(began)  # also when something it awaited was cancelled

    def _done(self, began: float) -> None:
        self.schedule.measured(time.perf_counter() - began)
        if not self._stopped:
            self._plan()
