"""How the games of `edgegap-sessions` are put together with the rest of a matchmaker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from tipoff_matchmaker.allocators.edgegap.allocator import EdgegapSessions
from tipoff_matchmaker.allocators.edgegap.readiness import Arriving
from tipoff_matchmaker.allocators.edgegap.seat_store import Parts
from tipoff_matchmaker.allocators.edgegap.session_requests import Asking
from tipoff_matchmaker.allocators.edgegap.watch import SessionWatch
from tipoff_matchmaker.allocators.interface import Allocator
from tipoff_matchmaker.bevygap.contexts import BevygapContexts
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.readiness import Readiness
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import Deployment, Orchestrator
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.session_servers import SessionServers
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, GameKey, Games
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord


class AtEdgegap:
    """`allocators`: for each of its games. `run` for as long as the matchmaker does."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        bus: Bus,
        buckets: Buckets,
        games: Games,
        deployments: DeploymentStore,
        readiness: Readiness,
        contexts: BevygapContexts,
        tasks: Tasks,
        settings: Settings,
        *,
        clock: Callable[[], float],
    ) -> None:
        if not isinstance(orchestrator, SessionServers):
            raise ConfigError(
                f"orchestrator {SESSIONS!r} is built in; a {type(orchestrator).__name__} is not it"
            )
        self._gameservers = buckets.gameservers
        self._readiness = readiness
        self._contexts = contexts
        self._watch = SessionWatch(orchestrator, bus)
        own = [game for game in games.all() if game.orchestrator == SESSIONS]
        parts = Parts(orchestrator, buckets.edgegap_sessions)
        asking = Asking(orchestrator, self._watch, parts, tasks, backoff=settings.backoff)
        arriving = Arriving(
            orchestrator, deployments, tasks, clock=clock, arrive=self._arrive, backoff=settings.backoff
        )
        allocator = EdgegapSessions(
            self._watch,
            parts,
            asking,
            arriving,
            deployments,
            own,
            tasks,
            clock=clock,
            seat_hold=settings.seat_hold,
            progress_interval=settings.progress_interval,
            backoff=settings.backoff,
        )
        self.allocators: Mapping[GameKey, Allocator] = {game.key: allocator for game in own}

    async def run(self) -> None:
        await self._watch.run()

    async def _arrive(self, record: DeploymentRecord, game: Game, deployment: Deployment) -> None:
        """What would have made it ready may have been said before there was a record of it."""
        match game.ready:
            case "lease":
                lease = await self._gameservers.get(record.id)
                if lease is not None:
                    await self._readiness.lease_seen(lease.value)
            case "running":
                await self._readiness.runs(deployment)
            case "context":
                said = {"request_id": record.id, "public_ip": deployment.host}
                await self._contexts.received(msgspec.json.encode(said))
