"""The servers behind Edgegap's sessions, as an `Orchestrator` that starts none: Edgegap deploys them itself when a
session finds no room. A deployment's id is Edgegap's request id here.

What can be seen and ended are those that a session of ours has led to; of all others in the account nothing is said.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from tipoff_orchestrator_client.base import Deployment, DeploySpec, NotConfigured, RunState
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.naming import as_deployment
from tipoff_orchestrator_client.edgegap.poller.deployment_list import Shared
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.games import Game, GameKey, Games
from tipoff_shared.nats.connection import Bus

log = logging.getLogger(__name__)


class SessionServers:
    """`client`, `bus` are the caller's. `client` and `settings` are for the allocator, which asks for sessions."""

    def __init__(self, client: EdgegapClient, bus: Bus, games: Games, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.hooks = settings.hooks(bus.settings.namespace)
        self._games = games
        self._known: dict[str, GameKey] = {}
        self._listing: Shared[list[Server]] = Shared(client.deployments)

    @property
    def name(self) -> str:
        return SESSIONS

    def know(self, request_id: str, game: Game) -> None:
        """A session of ours sits there."""
        self._known[request_id] = game.key

    def told(self, server: Server) -> Deployment:
        """As a session has told of it."""
        return self._as_deployment(server)

    async def deploy(self, spec: DeploySpec) -> Deployment:
        raise NotConfigured("Edgegap starts the servers of its sessions itself")

    async def get(self, deployment_id: str) -> Deployment | None:
        server = None if self.client.status_is_free else await self._listed(deployment_id)
        if server is None:
            server = await self.client.status(deployment_id)
        if server is None:
            self._known.pop(deployment_id, None)
            return None
        self._known.setdefault(deployment_id, ("", ""))
        return self._as_deployment(server)

    async def _listed(self, request_id: str) -> Server | None:
        """Where many ask at one time, one list tells all of them what runs. Of what does not, the status says more."""
        for server in await self._listing.get():
            if server.request_id == request_id and server.running and not server.problem:
                return server
        return None

    async def stop(self, deployment_id: str) -> None:
        """With whoever sits there."""
        await self.client.stop(deployment_id)
        self._known.pop(deployment_id, None)

    async def list(self) -> list[Deployment]:
        """Those we know of: asked for by a session, or by name since this process runs."""
        known = [self._as_deployment(s) for s in await self._listing.get() if s.request_id in self._known]
        return [deployment for deployment in known if deployment.state is not RunState.STOPPED]

    def _as_deployment(self, server: Server) -> Deployment:
        key = self._known.get(server.request_id, ("", ""))
        return as_deployment(server, server.request_id, key, self._games.get(*key))

    async def events(self) -> AsyncIterator[Deployment]:
        """None: the allocator follows its sessions itself."""
        await asyncio.Event().wait()
        yield Deployment("", "", "", RunState.STOPPED)

    async def close(self) -> None:
        await self._listing.close()
