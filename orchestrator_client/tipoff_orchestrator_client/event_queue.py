"""What one listener to an orchestrator's events has not read yet: bounded, because events are only hints."""

from __future__ import annotations

import asyncio

from tipoff_orchestrator_client.base import Deployment

WAITING = 1000


class EventQueue:
    """`async for event in queue`. A listener too slow for its events loses the oldest; `close` ends it at once."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Deployment | None] = asyncio.Queue(WAITING)

    def tell(self, event: Deployment) -> None:
        self._put(event)

    def close(self) -> None:
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
