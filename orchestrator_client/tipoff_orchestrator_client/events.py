"""Passes changes of deployments on to the listeners of `events()`. Each has a bounded queue: events are hints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from tipoff_orchestrator_client.base import Deployment

MAX_WAITING = 1000


class EventQueue:
    """The events that one listener has not read yet: `async for event in queue`. A full queue loses the oldest."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Deployment | None] = asyncio.Queue(MAX_WAITING)

    def put(self, event: Deployment) -> None:
        """Add an event."""
        self._put(event)

    def close(self) -> None:
        """End the iteration once the events before have been read."""
        self._put(None)

    def _put(self, event: Deployment | None) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(event)

    def __aiter__(self) -> EventQueue:
        return self

    async def __anext__(self) -> Deployment:
        if (event := await self._waiting.get()) is None:
            raise StopAsyncIteration
        return event


class EventListeners:
    """The queues of all current listeners."""

    def __init__(self) -> None:
        self._queues: set[EventQueue] = set()

    @contextmanager
    def listen(self) -> Iterator[EventQueue]:
        """A queue that gets every event published during the block."""
        queue = EventQueue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def publish(self, event: Deployment) -> None:
        """Give `event` to every listener."""
        for queue in self._queues:
            queue.put(event)

    def close(self) -> None:
        """End the iteration of every listener."""
        for queue in self._queues:
            queue.close()
