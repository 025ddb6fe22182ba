"""Lists the account's deployments; concurrent callers share a listing that begins after all of them have asked."""

from __future__ import annotations

from tipoff_orchestrator_client.base import OrchestratorUnavailable
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.naming import deployment_id_in
from tipoff_shared.errors import Unavailable
from tipoff_shared.primitives.single_flight import SingleFlight


class DeploymentList:
    """The account's deployments; tags tell ours, those of `namespace`. Every method raises `OrchestratorError` only.
    Cancelling a caller does not disturb the others."""

    def __init__(self, client: EdgegapClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._listing: SingleFlight[str, list[Server]] = SingleFlight("edgegap")

    async def all(self) -> list[Server]:
        """Every deployment of the account."""
        try:
            return await self._listing.run_fresh("list", self._client.deployments)
        except Unavailable as exc:
            raise OrchestratorUnavailable(str(exc), retryable=True) from exc

    async def named(self, deployment_id: str) -> list[Server]:
        """Every deployment that has this id as its tag, in the order of the list."""
        return [
            server
            for server in await self.all()
            if deployment_id_in(server.tags, self._namespace) == deployment_id
        ]

    async def find(self, deployment_id: str) -> Server | None:
        """The first of them that has not ended."""
        return next((server for server in await self.named(deployment_id) if not server.ended), None)

    async def close(self) -> None:
        """Cancel a listing that is under way."""
        await self._listing.close()
