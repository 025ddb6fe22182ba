"""Owns background tasks, and bounds the number of request handlers.

`Tasks` logs the exception of every task and hands it to `on_failure`; none is lost. `BoundedHandlers` runs one task per
request, at most `limit` at once; the caller decides what a request gets beyond that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from tipoff_shared.primitives.waiting import cancel_all

log = logging.getLogger(__name__)

T = TypeVar("T")


class Tasks:
    """The background tasks of one component. Leaving `async with` cancels those that still run and waits for them."""

    def __init__(self, name: str, on_failure: Callable[[BaseException], None] | None = None) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_failure = on_failure

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` in a task that this object owns; `name` is for logs."""
        task = asyncio.create_task(work, name=f"{self._name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def start_awaited(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """As `start`, for work whose outcome belongs to those who await the task: a failure is raised there, and is
        neither logged nor handed to `on_failure`."""
        task = asyncio.create_task(work, name=f"{self._name}/{name}")
        self._tasks.add(task)
        task.add_done_callback(self._awaited_done)
        return task

    def _awaited_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: where nobody waits any longer, asyncio is not to log it

    @property
    def running(self) -> frozenset[asyncio.Task[Any]]:
        """The tasks that run now."""
        return frozenset(self._tasks)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        if (exc := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=exc)
            if self._on_failure is not None:
                self._on_failure(exc)

    async def close(self, timeout: float = 5.0) -> None:
        """Cancel all and wait at most `timeout` seconds; idempotent."""
        others = {task for task in self._tasks if task is not asyncio.current_task()}
        pending = await cancel_all(others, timeout)
        for task in pending:
            log.error("task %s did not end within %.0f s of being cancelled", task.get_name(), timeout)

    async def __aenter__(self) -> Tasks:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class BoundedHandlers:
    """Runs request handlers, at most `limit` at once."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """How many handlers run now."""
        return len(self._tasks)

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return len(self._tasks) >= self._limit

    def submit(self, handler: Callable[[], Awaitable[None]]) -> bool:
        """Start `handler` in a task. False when the limit is reached; then nothing was started."""
        if self.full:
            return False

        async def run() -> None:
            await handler()

        task = asyncio.create_task(run(), name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return True

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.error("%s failed", self._name, exc_info=exc)

    async def drain(self, timeout: float) -> None:
        """Wait for the running handlers, at most `timeout` seconds; then cancel the rest and wait for them."""
        if not self._tasks:
            return
        _, pending = await asyncio.wait(set(self._tasks), timeout=timeout)
        for task in pending:
            task.cancel()
        if pending:
            log.warning("%d %s cancelled after %.0f s", len(pending), self._name, timeout)
            await asyncio.wait(pending, timeout=5)
