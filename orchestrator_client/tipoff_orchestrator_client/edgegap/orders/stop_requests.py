"""Tells Edgegap to stop deployments: once, and again when nothing came of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping

from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

STOPPING = 60.0
"""Seconds for which Edgegap may go on listing a deployment that was told to stop."""
_REPEAT = 15.0
"""Seconds between two requests to stop the same deployment in the background."""


class StopRequests:
    """The deployments that were told to stop, by Edgegap's request ids. `client` and `tasks` belong to the caller;
    `monotonic`: the clock of `sent`."""

    def __init__(
        self, client: EdgegapClient, tasks: Tasks, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._now = monotonic
        self._client = client
        self._tasks = tasks
        self._sent: dict[str, float] = {}

    @property
    def sent(self) -> Mapping[str, float]:
        """Request id -> monotonic time at which it was told to stop."""
        return self._sent

    async def stop(self, request_id: str) -> None:
        """Returns when Edgegap has accepted the request. Raises `OrchestratorError`."""
        await self._client.stop(request_id)
        self._sent[request_id] = self._now()

    def stop_soon(self, request_id: str, why: str) -> None:
        """Stop it in the background, at most once in 15 s. When that fails, the next `list` asks for it again."""
        now = self._now()
        if now - self._sent.get(request_id, -_REPEAT) < _REPEAT:
            return
        self._sent[request_id] = now
        log.warning("stopping Edgegap's deployment %s: %s", request_id, why)
        self._tasks.start(self._try(request_id), f"stop/{request_id}")

    async def _try(self, request_id: str) -> None:
        try:
            await self._client.stop(request_id)
        except OrchestratorError as exc:
            self._sent.pop(request_id, None)
            log.warning("stopping %s: %s; trying again with the next listing", request_id, exc)

    def keep(self, listed: Collection[str]) -> None:
        """Forget those that Edgegap no longer lists, once it must have noticed the request."""
        now = self._now()
        self._sent = {id: at for id, at in self._sent.items() if id in listed or now - at < STOPPING}
