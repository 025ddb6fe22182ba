"""Notices containers that end, and removes orphaned containers and volumes.

The engine's events are hints: each makes the server ask for its own state. After every gap in the event stream, and
twice a minute, all containers with this launcher's labels are listed. An orphan (a container that this launcher does
not know) is removed if it is still there at the next look. The same goes for volumes without a container: removing a
container by hand leaves its volume, which holds secrets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping

from tipoff_launcher.backends.docker.container_config import belongs_to
from tipoff_launcher.backends.docker.engine import Engine, EngineError
from tipoff_launcher.backends.docker.server import KnownContainers
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_shared.primitives.retry import Backoff, run_forever

log = logging.getLogger(__name__)

_INTERVAL = 30.0
_OVERLAP = 5.0
"""Seconds by which the event stream starts in the past, so that no event falls between a list and the stream."""
_PAUSE_FIRST = 0.1


class ContainerWatch:
    """Watches all containers with `owner_labels`, but for those of the owners in `foreign`. `interval`: seconds between
    two looks at all of them."""

    def __init__(
        self,
        engine: Engine,
        owner_labels: Mapping[str, str],
        known: KnownContainers,
        foreign: Collection[str] = (),
        *,
        interval: float = _INTERVAL,
    ) -> None:
        self._engine = engine
        self._owner_labels = owner_labels
        self._known = known
        self._foreign = foreign
        self._interval = interval
        self._orphans_since: dict[str, float] = {}
        self._unused_since: dict[str, float] = {}

    async def run(self) -> None:
        """Watch until cancelled."""

        def log_first(failures: int, exc: Exception) -> None:
            if failures == 1:
                log.warning("%s; no server is touched until it answers", exc)

        await run_forever(
            self._watch, first_pause=_PAUSE_FIRST, retry_on=OrchestratorError, on_failure=log_first
        )

    async def _watch(self, pauses: Backoff) -> None:
        """Look at all containers and follow the event stream to its end."""
        async with self._engine.end_events(self._owner_labels, time.time() - _OVERLAP) as ends:
            await self.look()
            if pauses.failures:
                log.warning("the Docker engine answers again")
            pauses.reset()
            await self._follow(ends)

    async def _follow(self, ends: AsyncIterator[str]) -> None:
        following = asyncio.ensure_future(_next(ends))
        try:
            while True:
                done, _ = await asyncio.wait([following], timeout=self._interval)
                if not done:
                    await self.look()
                    continue
                if (container_id := following.result()) is None:
                    return
                if (server := self._known.get(container_id)) is not None:
                    server.wake()
                following = asyncio.ensure_future(_next(ends))
        finally:
            following.cancel()
            await asyncio.wait([following])
            if not following.cancelled():
                following.exception()  # look() has raised another one

    async def look(self) -> None:
        """Look at all containers once: wake servers whose container has ended, remove orphans of an earlier look.
        Raises `OrchestratorError`."""
        found = await self._engine.list(self._owner_labels)
        for server in self._known.servers():
            state = found.get(server.native_id)
            if state is None or not state.running:
                server.wake()
        now = time.monotonic()
        self._orphans_since = {
            id: self._orphans_since.get(id, now)
            for id, state in found.items()
            if self._known.is_orphan(id) and not belongs_to(state.labels, self._foreign)
        }
        await self._remove_old("container", self._orphans_since, now, self._engine.remove)
        await self._look_at_volumes(now)

    async def _look_at_volumes(self, now: float) -> None:
        try:
            unused = await self._engine.unused_volumes(self._owner_labels)
        except (
            EngineError
        ) as exc:  # perhaps refused by a proxy in front of the engine that lets little through
            log.debug("the unused volumes are unknown: %s", exc)
            return
        self._unused_since = {name: self._unused_since.get(name, now) for name in unused}
        await self._remove_old("volume", self._unused_since, now, self._engine.remove_volume)

    async def _remove_old(
        self, what: str, seen: dict[str, float], now: float, remove: Callable[[str], Awaitable[None]]
    ) -> None:
        """Remove those first seen an interval ago. One that the engine cannot remove does not stop the others."""
        for id, since in list(seen.items()):
            if since + self._interval > now + 0.001:
                continue
            log.warning(
                "%s %s has this launcher's labels and belongs to no server: removing it", what, id[:12]
            )
            try:
                await remove(id)
                del seen[id]
            except EngineError as exc:
                log.warning("%s %s cannot be removed: %s", what, id[:12], exc)
                seen[id] = now


async def _next(ends: AsyncIterator[str]) -> str | None:
    return await anext(ends, None)
