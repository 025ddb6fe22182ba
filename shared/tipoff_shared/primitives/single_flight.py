"""Makes one call per key at a time: those who ask for the same key meanwhile share its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar

from tipoff_shared.errors import Unavailable
from tipoff_shared.primitives.waiting import cancel_all

K = TypeVar("K")
V = TypeVar("V")

Call: TypeAlias = Callable[[], Coroutine[Any, Any, V]]


class SingleFlight(Generic[K, V]):
    """The calls in flight, by key.

    A call, once begun, goes to its end: a waiter that is cancelled, even the last one, cancels nothing but itself.
    `close` (or leaving `async with`) cancels the calls; their waiters then get `Unavailable`.

    `begin(coroutine, name)` starts the task, for calls that belong to somebody else (`Tasks.start`: an unexpected
    failure is then logged there). By default the tasks are this object's own, and what they raise is for the waiters
    only. With `limit` calls in flight, one more is refused with `Unavailable`.
    """

    def __init__(
        self,
        name: str,
        *,
        limit: int | None = None,
        begin: Callable[[Coroutine[Any, Any, V], str], asyncio.Task[V]] | None = None,
    ) -> None:
        self._name = name
        self._limit = limit
        self._begin_task = begin
        self._flights: dict[K, asyncio.Task[V]] = {}
        self._next: dict[K, asyncio.Task[V]] = {}
        """Calls of `run_fresh` that wait for the one in flight to end."""

    def __contains__(self, key: object) -> bool:
        """Whether a call of this key is in flight."""
        return key in self._flights

    def __len__(self) -> int:
        return len(self._flights)

    def start(self, key: K, call: Call[V]) -> asyncio.Task[V]:
        """The task of the call in flight, begun with `call` where there is none. For callers that do not wait; who
        waits uses `run`, because awaiting the task would cancel it together with the waiter."""
        task = self._flights.get(key) or self._next.get(key)
        if task is None or task.done():
            task = self._flights[key] = self._begin(key, call())
        return task

    async def run(self, key: K, call: Call[V]) -> V:
        """The outcome of the call in flight, or of `call` where there is none. Raises what the call raises, and
        `Unavailable` over the limit and on close. Cancelling is safe."""
        return await self._outcome(self.start(key, call))

    async def run_fresh(self, key: K, call: Call[V]) -> V:
        """As `run`, but the outcome is never older than this call: where one is in flight, wait for its end and share
        the next one with all who came meanwhile."""
        task = self._next.get(key)
        if task is None or task.done():
            task = self._next[key] = self._begin(key, self._after(key, call))
        return await self._outcome(task)

    async def _after(self, key: K, call: Call[V]) -> V:
        while (before := self._flights.get(key)) is not None and not before.done():
            await asyncio.wait((before,))
        self._flights[key] = self._next.pop(key)
        return await call()

    def _begin(self, key: K, work: Coroutine[Any, Any, V]) -> asyncio.Task[V]:
        if self._limit is not None and len(self._flights) + len(self._next) >= self._limit:
            work.close()
            raise Unavailable("too many questions at once; ask again", retry_after=1)
        name = f"{self._name}/{key}"
        begin = self._begin_task
        task = asyncio.create_task(work, name=name) if begin is None else begin(work, name)
        task.add_done_callback(lambda done: self._ended(key, done))
        return task

    def _ended(self, key: K, task: asyncio.Task[V]) -> None:
        for flights in (self._flights, self._next):
            if flights.get(key) is task:
                del flights[key]
        if self._begin_task is None and not task.cancelled():
            task.exception()  # the waiters raise it; where all of them have gone, it is no news

    async def _outcome(self, task: asyncio.Task[V]) -> V:
        await asyncio.wait((task,))  # unlike awaiting the task, tells who of the two was cancelled
        if task.cancelled():
            raise Unavailable(f"{self._name}: this process is stopping; ask again", retry_after=1)
        return task.result()

    async def close(self, timeout: float = 5.0) -> None:
        """Cancel all calls and wait for their ends, at most `timeout` seconds; idempotent."""
        await cancel_all({*self._flights.values(), *self._next.values()}, timeout)

    async def __aenter__(self) -> SingleFlight[K, V]:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
