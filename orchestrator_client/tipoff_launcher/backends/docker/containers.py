"""Creates and removes containers so that cancellation leaves none behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from tipoff_launcher.backends.docker.container_config import deployment_of
from tipoff_launcher.backends.docker.engine import Engine, EngineError, start_error
from tipoff_orchestrator_client.base import OrchestratorError, OrchestratorUnavailable
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_REMOVE_DEADLINE = 20.0
"""Seconds to remove a container while its start is being cancelled."""


class Containers:
    """`owner_labels` tell this launcher's containers from others. `tasks` run what the engine has begun to its end."""

    def __init__(self, engine: Engine, tasks: Tasks, owner_labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._tasks = tasks
        self._owner_labels = owner_labels

    async def create(self, name: str, deployment_id: str, image: str, config: Mapping[str, object]) -> str:
        """Create a container and return its id. Raises `OrchestratorError`; cancelling leaves no container."""
        try:
            return await self._create(name, config)
        except EngineError as exc:
            if exc.status != 409:
                raise start_error(exc, image) from exc
        # An earlier attempt, whose end this launcher did not see, has left a container of this name.
        found = await self._engine.inspect(name)
        if found is not None:
            ours = all(found.labels.get(label) == value for label, value in self._owner_labels.items())
            if not ours or deployment_of(found.labels) != deployment_id:
                raise OrchestratorError(f"a container {name} exists that is not this launcher's; remove it")
            await self._engine.remove(found.id)
        try:
            return await self._create(name, config)
        except EngineError as exc:
            raise start_error(exc, image) from exc

    async def _create(self, name: str, config: Mapping[str, object]) -> str:
        """The engine completes a creation whose caller has gone, so a cancelled one is awaited and removed."""
        created: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def create() -> None:
            try:
                container_id = await self._engine.create(name, config)
            except BaseException as exc:
                created.set_exception(exc if isinstance(exc, OrchestratorError) else _abandoned())
                created.exception()
                if not isinstance(exc, OrchestratorError):
                    raise
            else:
                created.set_result(container_id)

        self._tasks.start(create(), f"create {name}")
        try:
            return await asyncio.shield(created)
        except asyncio.CancelledError:
            await asyncio.wait([created], timeout=_REMOVE_DEADLINE)
            if created.done() and created.exception() is None:
                await self.remove(created.result())
            raise

    async def remove(self, container_id: str) -> None:
        """Remove a container, also while being cancelled. Raises no error: ContainerWatch removes what is left."""
        removing = self._tasks.start(self._remove(container_id), f"remove {container_id[:12]}")
        try:
            await asyncio.shield(removing)
        except asyncio.CancelledError:
            await asyncio.wait([removing])
            raise

    async def _remove(self, container_id: str) -> None:
        try:
            async with asyncio.timeout(_REMOVE_DEADLINE):
                await self._engine.remove(container_id)
        except (OrchestratorError, TimeoutError) as exc:
            log.warning(
                "container %s is not removed yet: %s", container_id[:12], str(exc) or "the engine is slow"
            )

    async def remove_dead(self, container_id: str) -> None:
        """Remove a container that has ended; only logs an `EngineError`, so that the launcher can start."""
        try:
            await self._engine.remove(container_id)
        except EngineError as exc:
            log.warning("container %s is not removed yet: %s", container_id[:12], exc)


def _abandoned() -> OrchestratorError:
    return OrchestratorUnavailable("the launcher is ending", retryable=True)
