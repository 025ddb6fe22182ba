"""One listing for all who ask at the same time; each gets one that began after it asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from tipoff_orchestrator_client.base import OrchestratorUnavailable
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.naming import deployment_id_in

T = TypeVar("T")


class Shared(Generic[T]):
    """`read` is made at most once at a time. Whoever asks while it runs waits for the next one, with all the others
    who do."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Cancelling one who waits does not disturb the others. Raises what `read` raises."""
        task = self._next
        if task is None or task.done():
            task = self._next = asyncio.create_task(self._after(self._running), name="edgegap/list")
            task.add_done_callback(_heard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _is_cancelled():
                raise OrchestratorUnavailable("the list is not read to its end: we are closing") from None
            raise

    async def _after(self, before: asyncio.Task[T] | None) -> T:
        if before is not None and not before.done():
            await asyncio.wait((before,))
        self._running, self._next = self._next, None
        return await self._read()

    async def close(self) -> None:
        tasks = [task for task in (self._running, self._next) if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=2)


class Listing:
    """The deployments of the account; ours are told by their tags. Every method raises `OrchestratorError`."""

    def __init__(self, client: EdgegapClient, namespace: str) -> None:
        self._namespace = namespace
        self._servers: Shared[list[Server]] = Shared(client.deployments)

    async def all(self) -> list[Server]:
        return await self._servers.get()

    async def named(self, deployment_id: str) -> list[Server]:
        """Whatever has the name of this one of ours, in the order of the list."""
        servers = await self._servers.get()
        return [server for server in servers if self._name_of(server) == deployment_id]

    async def find(self, deployment_id: str) -> Server | None:
        """By its name; the oldest known of several."""
        named = await self.named(deployment_id)
        return next((server for server in named if not server.ended), None)

    def _name_of(self, server: Server) -> str | None:
        return deployment_id_in(server.tags, self._namespace)

    async def close(self) -> None:
        await self._servers.close()


def _is_cancelled() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0


def _heard(task: asyncio.Task[T]) -> None:
    if not task.cancelled():
        task.exception()  # those who wait raise it; where nobody does any more, it is no news
