"""Writes the record of a server on which Edgegap has placed a session, and waits until the server is ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from tipoff_matchmaker.allocators.edgegap.session_watch import Place, SessionLost
from tipoff_matchmaker.bevygap.contexts import BevygapContexts
from tipoff_matchmaker.deployments import state_machine
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.readiness import Readiness
from tipoff_orchestrator_client.base import Deployment, OrchestratorError, RunState
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_shared.games import Game
from tipoff_shared.kv.bucket import Bucket, LostRace
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease

log = logging.getLogger(__name__)

_TRIES = 5


class ServerReadiness:
    """Called by the allocator. `backoff`: first pause in seconds after a failed look-up, doubled each time."""

    def __init__(
        self,
        servers: SessionServers,
        deployments: DeploymentStore,
        gameservers: Bucket[GameserverLease],
        readiness: Readiness,
        contexts: BevygapContexts,
        tasks: Tasks,
        *,
        clock: Callable[[], float],
        backoff: float,
    ) -> None:
        self._servers = servers
        self._deployments = deployments
        self._gameservers = gameservers
        self._readiness = readiness
        self._contexts = contexts
        self._clock = clock
        self._backoff = backoff
        self._flights: SingleFlight[str, DeploymentRecord] = SingleFlight(
            "edgegap/ready", begin=tasks.start_awaited
        )
        self._ready: dict[str, asyncio.Event] = {}
        deployments.subscribe_states(self._state_changed)

    def _state_changed(self, before: DeploymentRecord | None, after: DeploymentRecord) -> None:
        if (event := self._ready.get(after.id)) is not None and not state_machine.is_coming(after):
            event.set()

    async def until_ready(self, place: Place, game: Game) -> DeploymentRecord:
        """The server's record, as soon as the server is ready. Concurrent callers share the wait. Raises `SessionLost`
        when the server ends, or is not ready within the game's `start_timeout`. Cancelling is safe."""
        if place.server is not None and place.server.ended:
            # Whatever our record says: it may still be ready, until the reconciler has looked.
            raise _ended(place.server.reason)
        record = self._deployments.get(place.request_id)
        if record is not None and record.state is DeploymentState.READY:
            return record
        return await self._flights.run(place.request_id, lambda: self._until_ready(place, game))

    async def _until_ready(self, place: Place, game: Game) -> DeploymentRecord:
        request_id = place.request_id
        event = self._ready[request_id] = asyncio.Event()
        try:
            async with asyncio.timeout(game.start_timeout):
                self._servers.note(request_id, game)
                if place.server is None:
                    deployment = await self._look_up(request_id)
                else:
                    deployment = self._servers.as_deployment(place.server)
                record = await self._record(request_id, game)
                if record is not None and state_machine.is_coming(record):
                    await self._apply_earlier_signs(record, game, deployment)
                    now = self._deployments.get(request_id)
                    if now is not None and state_machine.is_coming(now):
                        await event.wait()
        except TimeoutError:
            raise SessionLost(f"its server was not ready within {game.start_timeout:g} s") from None
        finally:
            self._ready.pop(request_id, None)
        record = self._deployments.get(request_id)
        if record is None or record.state is not DeploymentState.READY:
            raise SessionLost("its server is ending")
        return record

    async def _record(self, request_id: str, game: Game) -> DeploymentRecord | None:
        """The server's record, written if there is none."""
        record = self._deployments.get(request_id) or await self._deployments.fetch(request_id)
        if record is not None:
            return record
        coming = state_machine.started(state_machine.planned(request_id, game, self._clock()))
        record = msgspec.structs.replace(coming, id=request_id)
        try:
            await self._deployments.create(record)
        except LostRace:
            return await self._deployments.fetch(request_id)
        return record

    async def _apply_earlier_signs(
        self, record: DeploymentRecord, game: Game, deployment: Deployment
    ) -> None:
        """Make the server ready by what it may have said before its record existed."""
        match game.ready:
            case "lease":
                lease = await self._gameservers.get(record.id)
                if lease is not None:
                    await self._readiness.lease_seen(lease.value)
            case "running":
                await self._readiness.runs(deployment)
            case "context":
                context = {"request_id": record.id, "public_ip": deployment.host}
                await self._contexts.received(msgspec.json.encode(context))

    async def _look_up(self, request_id: str) -> Deployment:
        """The server at Edgegap; tried again while Edgegap gives no usable answer. Raises `SessionLost`."""
        tries = 0
        while True:
            try:
                found = await self._servers.get(request_id)
            except OrchestratorError as exc:
                tries += 1
                log.warning("looking up server %s: %s", request_id, exc)
                if tries >= _TRIES:
                    raise SessionLost(f"its server cannot be looked up: {exc}") from exc
                await asyncio.sleep(max(self._backoff * 2**tries, exc.retry_after or 0.0))
                continue
            if found is None or found.state is RunState.STOPPED:
                raise _ended(found.reason if found else "")
            return found


def _ended(reason: str) -> SessionLost:
    return SessionLost("its server has ended" + (f": {reason}" if reason else ""))
