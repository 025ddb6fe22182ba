"""`gameserver.contexts`: how a bevygap server says that it is ready. Its ports are its orchestrator's to tell, its
certificate's digest stands in `cert_digests`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable

from tipoff_matchmaker.backoff import pause
from tipoff_matchmaker.deployments.machine import is_coming
from tipoff_matchmaker.deployments.readiness import decode_context, from_orchestrator
from tipoff_matchmaker.deployments.store import Ledger
from tipoff_matchmaker.fleet.liveness import Servers
from tipoff_matchmaker.fleet.planner import Fleet
from tipoff_orchestrator_client.base import (
    Deployment,
    KnowsNativeIds,
    Orchestrator,
    OrchestratorError,
    RunState,
)
from tipoff_shared.errors import Malformed, TipoffError, Unavailable
from tipoff_shared.games import Game, Games
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.records import DeploymentRecord

log = logging.getLogger(__name__)

_TRIES = 7
_AGAIN = 0.5


class Contexts:
    def __init__(
        self, games: Games, ledger: Ledger, fleet: Fleet, servers: Servers, cert_digests: Bucket[str]
    ) -> None:
        self._games = games
        self._ledger = ledger
        self._fleet = fleet
        self._servers = servers
        self._cert_digests = cert_digests
        self.timeout = 10.0
        """Seconds to wait for a certificate's digest."""

    async def received(self, data: bytes) -> None:
        """A message on `gameserver.contexts`: a bevygap server is ready."""
        try:
            context = decode_context(data)
        except Malformed as exc:
            log.warning("a message on gameserver.contexts: %s", exc)
            return
        found = await self._named(context.ids)
        if found is None:
            return
        record, game, deployment = found
        digest = ""
        if game.primary == "webtransport":
            digest = await self._cert_digest(context.public_ip)
            if not digest:
                reason = f"no certificate digest was reported for {context.public_ip or 'it'}"
                if not self._fleet.starts.died(record.id, reason):
                    self._fleet.end(record.id, reason)
                return
        await self._arrived(record, deployment, digest)

    async def look_for_digest(self, deployment: Deployment) -> None:
        """For a server that runs and of which no context was heard: a matchmaker may have died with it. It writes its
        digest just before, under a key that is its alone. Raises `Unavailable`."""
        record = self._ledger.get(deployment.deployment_id)
        entry = await self._cert_digests.get(deployment.digest_key) if deployment.digest_key else None
        if record is not None and entry is not None and is_coming(record):
            log.info("the context of %s was missed; its digest says that it is ready", record.id)
            await self._arrived(record, deployment, entry.value)

    async def _arrived(self, record: DeploymentRecord, deployment: Deployment, digest: str) -> None:
        try:
            if await self._servers.arrive(record, from_orchestrator(deployment, digest)):
                self._servers.trust(record.id)
        except TipoffError as exc:
            log.warning("that %s is ready could not be written down: %s", record.id, exc)

    async def _named(self, ids: Iterable[str]) -> tuple[DeploymentRecord, Game, Deployment] | None:
        """The deployment that calls itself by one of these, if it is one that a context makes ready."""
        ids = tuple(ids)
        for name in (*ids, *[found async for found in self._native(ids)]):
            record = self._ledger.get(name)
            if record is None:
                continue
            game = self._games.get(record.game, record.version)
            orchestrator = self._fleet.orchestrator(record.orchestrator)
            if game is None or game.ready != "context" or orchestrator is None:
                return None
            deployment = await self._look_up(orchestrator, record.id)
            return None if deployment is None else (record, game, deployment)
        return None

    async def _native(self, ids: tuple[str, ...]) -> AsyncIterator[str]:
        """What we call a server that calls itself by its orchestrator's name for it; asked twice, because that name may
        be written down a moment after the server has started."""
        if any(self._ledger.get(name) is not None for name in ids):
            return
        asked = {game.orchestrator for game in self._games.all() if game.ready == "context"}
        for tries in range(2):
            for name in asked:
                orchestrator = self._fleet.orchestrator(name)
                if not isinstance(orchestrator, KnowsNativeIds):
                    continue
                for native_id in ids:
                    if (found := await orchestrator.deployment_named(native_id)) is not None:
                        yield found
                        return
            if not tries and asked:
                await asyncio.sleep(_AGAIN)

    async def _look_up(self, orchestrator: Orchestrator, deployment_id: str) -> Deployment | None:
        """A server says this once, so a silent orchestrator is asked a few times."""
        found: Deployment | None = None
        for tries in range(1, _TRIES + 1):
            try:
                found = await orchestrator.get(deployment_id)
                if found is None or found.ports or found.state is not RunState.STARTING:
                    return found
                # It is quicker than what its orchestrator says of it, its ports among that.
                wait = pause(tries, 0.2)
            except OrchestratorError as exc:
                log.warning(
                    "%s is ready, but %s does not know where: %s", deployment_id, orchestrator.name, exc
                )
                wait = pause(tries, 0.2, retry_after=exc.retry_after)
            await asyncio.sleep(wait)
        return found

    async def _cert_digest(self, public_ip: str) -> str:
        """What the server wrote for its address; waits for it at most `timeout` seconds."""
        if not public_ip:
            return ""
        try:
            async with asyncio.timeout(self.timeout), self._cert_digests.watch(public_ip) as changes:
                while True:
                    for change, ack in await changes.fetch(timeout=self.timeout):
                        await ack()
                        if change.value:
                            return change.value
        except TimeoutError:
            return ""
        except Unavailable as exc:
            log.warning("reading the certificate digest of %s: %s", public_ip, exc)
            return ""
