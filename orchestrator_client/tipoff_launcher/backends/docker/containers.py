"""Creates and removes containers so that cancellation leaves none behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from tipoff_launcher.backends.docker.container_config import deployment_of
from tipoff_launcher.backends.docker.engine import Engine, EngineError, start_error
from tipoff_orchestrator_client.base import OrchestratorError, OrchestratorUnavailable
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.text import describe

log = logging.getLogger(__name__)

_REMOVE_DEADLINE = 20.0
"""Seconds to remove a container while its start is being cancelled."""


class Containers:
    """`owner_labels` tell this launcher's containers from others.

    Use it in `async with`; leaving cancels creations and removals that still run.
    """

    def __init__(self, engine: Engine, owner_labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._owner_labels = owner_labels
        self._creations = SingleFlight[str, str]("create")
        self._removals = SingleFlight[str, None]("remove")

    async def __aenter__(self) -> Containers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._creations.close()
        await self._removals.close()

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
        creation = self._creations.start(name, lambda: self._engine.create(name, config))
        try:
            await asyncio.wait((creation,))
        except asyncio.CancelledError:
            await asyncio.wait((creation,), timeout=_REMOVE_DEADLINE)
            if creation.done() and not creation.cancelled() and creation.exception() is None:
                await self.remove(creation.result())
            raise
        if creation.cancelled():
            raise OrchestratorUnavailable("the launcher is ending", retryable=True)
        return creation.result()

    async def remove(self, container_id: str) -> None:
        """Remove a container, also while being cancelled. Raises no error: ContainerWatch removes what is left."""
        removal = self._removals.start(container_id, lambda: self._remove(container_id))
        try:
            await asyncio.wait((removal,))
        except asyncio.CancelledError:
            await asyncio.wait((removal,))
            raise

    async def _remove(self, container_id: str) -> None:
        try:
            async with asyncio.timeout(_REMOVE_DEADLINE):
                await self._engine.remove(container_id)
        except (OrchestratorError, TimeoutError) as exc:
            log.warning("container %s is not removed yet: %s", container_id[:12], describe(exc))

    async def remove_dead(self, container_id: str) -> None:
        """Remove a container that has ended; only logs an `EngineError`, so that the launcher can start."""
        try:
            await self._engine.remove(container_id)
        except EngineError as exc:
            log.warning("container %s is not removed yet: %s", container_id[:12], exc)
