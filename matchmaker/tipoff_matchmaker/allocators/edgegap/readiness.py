"""The servers on which Edgegap places sessions: known in our records, and waited for until they serve."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec

from tipoff_matchmaker.allocators.edgegap.shielded import begin
from tipoff_matchmaker.allocators.edgegap.watch import Place, SessionLost
from tipoff_matchmaker.deployments import machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_orchestrator_client.base import Deployment, OrchestratorError, RunState
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_shared.games import Game
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState

log = logging.getLogger(__name__)

_TRIES = 5

Arrive: TypeAlias = Callable[[DeploymentRecord, Game, Deployment], Awaitable[None]]
"""A deployment runs: see whether it serves, so that its record becomes ready."""


class Arriving:
    def __init__(
        self,
        servers: SessionServers,
        deployments: DeploymentStore,
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        arrive: Arrive,
        backoff: float,
    ) -> None:
        self._servers = servers
        self._deployments = deployments
        self._tasks = tasks
        self._clock = clock
        self._arrive = arrive
        self._backoff = backoff
        self._arriving: dict[str, asyncio.Task[DeploymentRecord]] = {}
        self._ready: dict[str, asyncio.Event] = {}
        deployments.subscribe(self._deployment_changed)

    def _deployment_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        if (event := self._ready.get(after.id)) is not None and not machine.is_coming(after):
            event.set()

    async def serving(self, place: Place, game: Game) -> DeploymentRecord:
        """The deployment's record as soon as it is ready; those who ask at one time share the way there.
        Raises `SessionLost`."""
        request_id = place.request_id
        record = self._deployments.get(request_id)
        if record is not None and record.state is DeploymentState.READY:
            return record
        task = self._arriving.get(request_id)
        if task is None:
            task = begin(self._tasks, self._until_serving(place, game), f"arriving/{request_id}")
            self._arriving[request_id] = task
            task.add_done_callback(lambda _: self._arriving.pop(request_id, None))
        return await asyncio.shield(task)

    async def _until_serving(self, place: Place, game: Game) -> DeploymentRecord:
        request_id = place.request_id
        event = self._ready[request_id] = asyncio.Event()
        try:
            async with asyncio.timeout(game.start_timeout):
                self._servers.know(request_id, game)
                told = place.server
                deployment = await self._look(request_id) if told is None else self._servers.told(told)
                record = self._deployments.get(request_id) or await self._deployments.fetch(request_id)
                if record is None:
                    coming = machine.started(machine.planned(request_id, game, self._clock()))
                    record = msgspec.structs.replace(coming, id=request_id)
                    try:
                        await self._deployments.create(record)
                    except LostRace:
                        record = await self._deployments.fetch(request_id)
                if record is not None and machine.is_coming(record):
                    await self._arrive(record, game, deployment)
                    now = self._deployments.get(request_id)
                    if now is not None and machine.is_coming(now):
                        await event.wait()
        except TimeoutError:
            raise SessionLost(f"its server was not ready within {game.start_timeout:g} s") from None
        finally:
            self._ready.pop(request_id, None)
        record = self._deployments.get(request_id)
        if record is None or record.state is not DeploymentState.READY:
            raise SessionLost("its server is ending")
        return record

    async def _look(self, request_id: str) -> Deployment:
        """Where it is; asked again while Edgegap gives no answer that can be used."""
        tries = 0
        while True:
            try:
                found = await self._servers.get(request_id)
            except OrchestratorError as exc:
                tries += 1
                log.warning("where %s is: %s", request_id, exc)
                if tries >= _TRIES:
                    raise SessionLost(f"where its server is cannot be told: {exc}") from exc
                await asyncio.sleep(max(self._backoff * 2**tries, exc.retry_after or 0.0))
                continue
            if found is None or found.state is RunState.STOPPED:
                raise SessionLost("its server has ended" + (f": {found.reason}" if found else ""))
            return found
