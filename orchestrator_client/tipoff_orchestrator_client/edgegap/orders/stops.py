"""Deployments at Edgegap that were told to stop: once, and again when nothing has come of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

STOPPING = 60.0
"""Seconds that a deployment may go on being listed after it was told to stop."""
_REPEAT = 15.0


class Stops:
    """`client`, `tasks` are the caller's. Deployments are named by Edgegap's request ids here."""

    def __init__(self, client: EdgegapClient, tasks: Tasks) -> None:
        self._client = client
        self._tasks = tasks
        self._told: dict[str, float] = {}

    @property
    def told(self) -> Mapping[str, float]:
        """When (monotonic) each was told to stop."""
        return self._told

    async def now(self, request_id: str) -> None:
        """Returns when Edgegap has taken it. Raises `OrchestratorError`."""
        await self._client.stop(request_id)
        self._told[request_id] = _now()

    def later(self, request_id: str, why: str) -> None:
        """In the background, once; should it fail, the next `list` begins again."""
        now = _now()
        if now - self._told.get(request_id, -_REPEAT) < _REPEAT:
            return
        self._told[request_id] = now
        log.warning("stopping Edgegap's deployment %s: %s", request_id, why)
        self._tasks.start(self._try(request_id), f"stop/{request_id}")

    async def _try(self, request_id: str) -> None:
        try:
            await self._client.stop(request_id)
        except OrchestratorError as exc:
            self._told.pop(request_id, None)
            log.warning("stopping %s: %s; again with the next listing", request_id, exc)

    def forget_all_but(self, listed: Collection[str]) -> None:
        """Those that Edgegap lists no more, as soon as it must have taken notice."""
        now = _now()
        self._told = {id: at for id, at in self._told.items() if id in listed or now - at < STOPPING}


def _now() -> float:
    return asyncio.get_running_loop().time()
