"""Hears of containers that end, from the engine's stream of events, and looks through all of ours every now and then.

Events are hints: each makes the server look itself. After every gap in the stream, and twice a minute, all containers
that carry our marks are listed: those that nobody here knows, and that are still there at the next look, are removed.
So are volumes of ours without a container: who removes a container by hand leaves its volume, with the secrets in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from tipoff_launcher.backends.docker.engine import Engine, Refused
from tipoff_launcher.backends.docker.server import DockerServer
from tipoff_orchestrator_client.base import OrchestratorError

log = logging.getLogger(__name__)

_LOOK_EVERY = 30.0
_OVERLAP = 5.0
"""Seconds: how far back the stream begins, so that nothing falls between a list and it."""
_PAUSE_FIRST, _PAUSE_AT_MOST = 0.1, 5.0


class Watch:
    """`servers()` are those that are known, by container id; `is_nobodys(id)`: neither known nor in the making."""

    def __init__(
        self,
        engine: Engine,
        marks: Mapping[str, str],
        servers: Callable[[], Mapping[str, DockerServer]],
        is_nobodys: Callable[[str], bool],
        *,
        look_every: float = _LOOK_EVERY,
    ) -> None:
        self._engine = engine
        self._marks = marks
        self._servers = servers
        self._is_nobodys = is_nobodys
        self._look_every = look_every
        self._unknown: dict[str, float] = {}
        self._unused: dict[str, float] = {}

    async def run(self) -> None:
        """For ever."""
        tries = 0
        while True:
            try:
                async with self._engine.ends(self._marks, time.time() - _OVERLAP) as ends:
                    await self.look()
                    if tries:
                        log.warning("the Docker engine answers again")
                    tries = 0
                    await self._follow(ends)
            except OrchestratorError as exc:
                if not tries:
                    log.warning("%s; servers are left as they are until it does", exc)
            tries += 1
            await asyncio.sleep(min(_PAUSE_FIRST * 2**tries, _PAUSE_AT_MOST))

    async def _follow(self, ends: AsyncIterator[str]) -> None:
        following = asyncio.ensure_future(_next(ends))
        try:
            while True:
                done, _ = await asyncio.wait([following], timeout=self._look_every)
                if not done:
                    await self.look()
                    continue
                if (container_id := following.result()) is None:
                    return
                if (server := self._servers().get(container_id)) is not None:
                    server.wake()
                following = asyncio.ensure_future(_next(ends))
        finally:
            following.cancel()
            await asyncio.wait([following])
            if not following.cancelled():
                following.exception()  # what the look has raised is told instead

    async def look(self) -> None:
        """All of ours, once: wake those that have ended, remove those that belong to nobody."""
        found = await self._engine.list(self._marks)
        servers = self._servers()
        for container_id, server in servers.items():
            state = found.get(container_id)
            if state is None or not state.running:
                server.wake()
        now = time.monotonic()
        self._unknown = {id: self._unknown.get(id, now) for id in found if self._is_nobodys(id)}
        await self._remove_old("container", self._unknown, now, self._engine.remove)
        await self._look_at_volumes(now)

    async def _look_at_volumes(self, now: float) -> None:
        try:
            unused = await self._engine.unused_volumes(self._marks)
        except (
            Refused
        ) as exc:  # perhaps by a proxy in front of the engine, which lets through what a launcher must have
            log.debug("volumes that no container has are not known: %s", exc)
            return
        self._unused = {name: self._unused.get(name, now) for name in unused}
        await self._remove_old("volume", self._unused, now, self._engine.remove_volume)

    async def _remove_old(
        self, what: str, seen: dict[str, float], now: float, remove: Callable[[str], Awaitable[None]]
    ) -> None:
        """Those of `seen` that were there a look ago. One that the engine cannot remove is in nobody's way."""
        for id, since in list(seen.items()):
            if since + self._look_every > now + 0.001:
                continue
            log.warning("%s %s carries our marks and is nobody's; it is removed", what, id[:12])
            try:
                await remove(id)
                del seen[id]
            except Refused as exc:
                log.warning("%s %s cannot be removed: %s", what, id[:12], exc)
                seen[id] = now


async def _next(ends: AsyncIterator[str]) -> str | None:
    return await anext(ends, None)
