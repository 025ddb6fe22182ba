"""Calls the game: one callback at a time, in the order of what happened, whatever the callback does.

Plain functions are called at once, from the very event that caused them. A coroutine function's call is awaited
before the next callback begins; what happens meanwhile queues up. A callback that raises is reported to `on_error`
and is over; everybody else's game goes on.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from tipoff_shared.primitives.tasks import Tasks

MAX_QUEUED = 10_000
"""Calls that may wait while an async callback takes its time; messages beyond that are dropped."""

Call = tuple[str, Callable[..., Any], tuple[Any, ...]]


class Dispatcher:
    """`on_error(label, args, exc)` hears of every callback that raised."""

    def __init__(self, tasks: Tasks, on_error: Callable[[str, tuple[Any, ...], BaseException], None]) -> None:
        self._tasks = tasks
        self._on_error = on_error
        self._queue: deque[Call] = deque()
        self._running = False
        self._awaiting: tuple[str, float] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def full(self) -> bool:
        return len(self._queue) >= MAX_QUEUED

    def waited_for(self, now: float) -> tuple[str, float] | None:
        """The async callback that is being awaited, and for how many seconds (`time.perf_counter`)."""
        return None if self._awaiting is None else (self._awaiting[0], now - self._awaiting[1])

    def post(self, label: str, call: Callable[..., Any], *args: Any) -> None:
        """Call `call(*args)` when its turn has come, which may be now."""
        self._queue.append((label, call, args))
        if not self._running:
            self._run()

    async def idle(self) -> None:
        """Wait until nothing is queued or running. Not to be awaited from within a callback."""
        await self._idle.wait()

    def _run(self) -> None:
        self._running = True
        queue = self._queue
        while queue:
            label, call, args = queue.popleft()
            try:
                result = call(*args)
            except Exception as exc:
                self._on_error(label, args, exc)
                continue
            if result is not None and inspect.isawaitable(result):
                self._idle.clear()
                self._awaiting = (label, time.perf_counter())
                self._tasks.start(self._finish(label, args, result), label)
                return
        self._running = False
        self._idle.set()

    async def _finish(self, label: str, args: tuple[Any, ...], result: Awaitable[Any]) -> None:
        try:
            await result
        except Exception as exc:
            self._on_error(label, args, exc)
        except asyncio.CancelledError as exc:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._on_error(label, args, exc)  # something the game awaited was cancelled, not we
        finally:
            self._awaiting = None
        self._run()
