"""Runs the game's ticks on time: the driver of `TickSchedule`."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tipoff_gameserver.lifecycle import GameFailed
from tipoff_gameserver.players.dispatch import Dispatcher
from tipoff_gameserver.throttled_log import Complaints
from tipoff_gameserver.ticks import TickSchedule


class Clock:
    """Calls `tick` at `rate` ticks per second through the dispatcher, one tick at a time.

    A tick that raises is logged and the next one comes; after `max_failures` in a row `give_up` is called with the
    reason. Between two ticks the event loop always gets its turn, however late they are.
    """

    def __init__(
        self,
        tick: Callable[[], Any],
        rate: float,
        dispatcher: Dispatcher,
        complaints: Complaints,
        *,
        max_failures: int,
        give_up: Callable[[GameFailed], None],
    ) -> None:
        self._tick = tick
        self._loop = asyncio.get_running_loop()
        self._dispatcher = dispatcher
        self._complaints = complaints
        self._max_failures = max_failures
        self._give_up = give_up
        self._failures = 0
        self._handle: asyncio.TimerHandle | None = None
        self._stopped = False
        self.schedule = TickSchedule(rate, self._loop.time())

    def start(self) -> None:
        """The first tick is one period from now."""
        self.schedule.restart(self._loop.time())
        self._plan()

    def stop(self) -> None:
        self._stopped = True
        if self._handle is not None:
            self._handle.cancel()

    def _plan(self) -> None:
        schedule = self.schedule
        if skipped := schedule.skip_missed(self._loop.time()):
            self._complaints.say(
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
            self._failed(exc)
        else:
            if result is not None and inspect.isawaitable(result):
                return self._finish(result, began)
            self._failures = 0
        self._done(began)
        return None

    async def _finish(self, result: Awaitable[Any], began: float) -> None:
        try:
            await result
        except Exception as exc:
            self._failed(exc)
        else:
            self._failures = 0
        finally:
            self._done(began)  # also when something it awaited was cancelled

    def _done(self, began: float) -> None:
        self.schedule.measured(time.perf_counter() - began)
        if not self._stopped:
            self._plan()

    def _failed(self, exc: Exception) -> None:
        self._failures += 1
        self._complaints.traceback("tick", "the game's tick failed; the game goes on", exc)
        if self._failures == self._max_failures:
            failure = GameFailed(
                f"the game's tick failed {self._failures} times in a row, the last time with "
                f"{type(exc).__name__}: {exc}"
            )
            failure.__cause__ = exc
            self._give_up(failure)
