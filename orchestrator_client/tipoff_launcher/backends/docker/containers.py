"""Containers are made once, and removed whatever happens to whoever asked for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from tipoff_launcher.backends.docker.container import deployment_of
from tipoff_launcher.backends.docker.engine import Engine, Refused
from tipoff_launcher.backends.docker.refusals import why_not
from tipoff_orchestrator_client.base import OrchestratorError, OrchestratorUnavailable
from tipoff_shared.games import DockerSpec
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_REMOVE_DEADLINE = 20.0


class Containers:
    """`marks`: the labels that say whose a container is. `tasks` finish what was begun with the engine."""

    def __init__(self, engine: Engine, tasks: Tasks, marks: Mapping[str, str]) -> None:
        self._engine = engine
        self._tasks = tasks
        self._marks = marks

    async def make(
        self, name: str, deployment_id: str, spec: DockerSpec, config: Mapping[str, object]
    ) -> str:
        """Its id. Raises `OrchestratorError`; whoever is cancelled leaves none behind."""
        try:
            return await self._make(name, config)
        except Refused as exc:
            if exc.status != 409:
                raise why_not(exc, spec) from exc
        # What an attempt of ours has left whose end was not heard; nobody knows it, or we would not be here.
        found = await self._engine.look(name)
        if found is not None:
            ours = all(found.labels.get(label) == value for label, value in self._marks.items())
            if not ours or deployment_of(found.labels) != deployment_id:
                raise OrchestratorError(f"a container {name} exists that is not this launcher's; remove it")
            await self._engine.remove(found.id)
        try:
            return await self._make(name, config)
        except Refused as exc:
            raise why_not(exc, spec) from exc

    async def _make(self, name: str, config: Mapping[str, object]) -> str:
        """The engine makes a container also when nobody waits for it any more: then it is removed."""
        made: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def make() -> None:
            try:
                container_id = await self._engine.create(name, config)
            except BaseException as exc:
                made.set_exception(exc if isinstance(exc, OrchestratorError) else _abandoned())
                made.exception()
                if not isinstance(exc, OrchestratorError):
                    raise
            else:
                made.set_result(container_id)

        self._tasks.start(make(), f"make {name}")
        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            await asyncio.wait([made], timeout=_REMOVE_DEADLINE)
            if made.done() and made.exception() is None:
                await self.remove(made.result())
            raise

    async def remove(self, container_id: str) -> None:
        """Also while being cancelled; what the engine does not do now, the watch does later."""
        removing = self._tasks.start(self._removed(container_id), f"remove {container_id[:12]}")
        try:
            await asyncio.shield(removing)
        except asyncio.CancelledError:
            await asyncio.wait([removing])
            raise

    async def _removed(self, container_id: str) -> None:
        try:
            async with asyncio.timeout(_REMOVE_DEADLINE):
                await self._engine.remove(container_id)
        except (OrchestratorError, TimeoutError) as exc:
            log.warning(
                "container %s is left for later: %s", container_id[:12], str(exc) or "the engine is slow"
            )

    async def remove_dead(self, container_id: str) -> None:
        """One that the engine fails to remove must not keep a launcher from starting."""
        try:
            await self._engine.remove(container_id)
        except Refused as exc:
            log.warning("container %s is left for later: %s", container_id[:12], exc)


def _abandoned() -> OrchestratorError:
    return OrchestratorUnavailable("the launcher is ending", retryable=True)
