"""Finds and stops the servers of Edgegap's sessions, which Edgegap starts itself when a session finds no room.

A deployment's id is Edgegap's request id here. Only servers that one of our sessions uses are listed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.naming import as_deployment
from tipoff_orchestrator_client.edgegap.poller.deployment_list import DeploymentList
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.games import Game, GameKey, Games
from tipoff_shared.nats.connection import Bus


class SessionServers:
    """The `ServerDirectory` of `edgegap-sessions`, made by `open_edgegap`; `client` and `bus` belong to the caller.

    The matchmaker's allocator creates the sessions with `client` and `settings`, and notes their servers here.
    """

    def __init__(self, client: EdgegapClient, bus: Bus, games: Games, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self._games = games
        self._known: dict[str, GameKey] = {}
        self._listing = DeploymentList(client, bus.settings.namespace)

    @property
    def name(self) -> str:
        """`edgegap-sessions`."""
        return SESSIONS

    def note(self, request_id: str, game: Game) -> None:
        """Note that one of our sessions uses this server."""
        self._known[request_id] = game.key

    def as_deployment(self, server: Server) -> Deployment:
        """A server that a session's status describes."""
        key = self._known.get(server.request_id, ("", ""))
        return as_deployment(server, server.request_id, key, self._games.get(*key))

    async def get(self, deployment_id: str) -> Deployment | None:
        """See `ServerDirectory`. When many ask at once, one list answers for the running ones."""
        server = None if self.client.status_is_free else await self._listed(deployment_id)
        if server is None:
            server = await self.client.status(deployment_id)
        if server is None:
            self._known.pop(deployment_id, None)
            return None
        self._known.setdefault(deployment_id, ("", ""))
        return self.as_deployment(server)

    async def _listed(self, request_id: str) -> Server | None:
        for server in await self._listing.all():
            if server.request_id == request_id and server.running and not server.problem:
                return server
        return None

    async def stop(self, deployment_id: str) -> None:
        """See `ServerDirectory`. Ends the sessions on this server as well."""
        await self.client.stop(deployment_id)
        self._known.pop(deployment_id, None)

    async def list(self) -> list[Deployment]:
        """The servers that `note` or `get` has named since this process started."""
        known = [self.as_deployment(s) for s in await self._listing.all() if s.request_id in self._known]
        return [deployment for deployment in known if deployment.state is not RunState.STOPPED]

    async def events(self) -> AsyncIterator[Deployment]:
        """Never yields: the allocator follows its sessions itself."""
        await asyncio.Event().wait()
        yield Deployment("", "", "", RunState.STOPPED)

    async def close(self) -> None:
        """See `ServerDirectory`."""
        await self._listing.close()
