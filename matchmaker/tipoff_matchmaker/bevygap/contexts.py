"""Handles `gameserver.contexts`, by which a bevygap server says that it is ready. Its ports come from its orchestrator,
its certificate's digest from `cert_digests`."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from tipoff_matchmaker.deployments.state_machine import is_coming
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.fleet.readiness import Readiness
from tipoff_matchmaker.fleet.stop import Stopper
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
from tipoff_shared.primitives.retry import backoff
from tipoff_shared.records import DeploymentRecord

log = logging.getLogger(__name__)

_MAX_CONTEXT = 64 * 1024
_TRIES = 7
_AGAIN = 0.5


@dataclass(frozen=True, slots=True)
class Context:
    """What a `gameserver.contexts` message says. `ids`: what may be the deployment's id, likeliest first."""

    ids: tuple[str, ...]
    public_ip: str


class BevygapContexts:
    """Makes bevygap's servers ready by what they say once, when they start."""

    def __init__(
        self,
        games: Games,
        deployments: DeploymentStore,
        orchestrators: Mapping[str, Orchestrator],
        readiness: Readiness,
        stopper: Stopper,
        cert_digests: Bucket[str],
    ) -> None:
        self._games = games
        self._deployments = deployments
        self._orchestrators = orchestrators
        self._readiness = readiness
        self._stopper = stopper
        self._cert_digests = cert_digests
        self.timeout = 10.0
        """Seconds to wait for a certificate's digest."""

    async def received(self, data: bytes) -> None:
        """Handle a message on `gameserver.contexts`: a bevygap server is ready."""
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
                self._stopper.stop(record.id, reason)
                return
        await self._ready(deployment, digest)

    async def look_for_digest(self, deployment: Deployment) -> None:
        """Make a server ready that runs and whose context was missed: a matchmaker may have died with it. The server
        writes its digest just before, under a key that only it uses. Raises `Unavailable`."""
        record = self._deployments.get(deployment.deployment_id)
        entry = await self._cert_digests.get(deployment.digest_key) if deployment.digest_key else None
        if record is not None and entry is not None and is_coming(record):
            log.info("the context of %s was missed; its digest says that it is ready", record.id)
            await self._ready(deployment, entry.value)

    async def _ready(self, deployment: Deployment, digest: str) -> None:
        try:
            await self._readiness.runs(deployment, digest)
        except TipoffError as exc:
            log.warning("that %s is ready could not be written down: %s", deployment.deployment_id, exc)

    async def _named(self, ids: Iterable[str]) -> tuple[DeploymentRecord, Game, Deployment] | None:
        """The deployment that one of these ids names, if a context makes its game's servers ready."""
        ids = tuple(ids)
        for name in (*ids, *[found async for found in self._native(ids)]):
            record = self._deployments.get(name)
            if record is None:
                continue
            game = self._games.get(record.game, record.version)
            orchestrator = self._orchestrators.get(record.orchestrator)
            if game is None or game.ready != "context" or orchestrator is None:
                return None
            deployment = await self._look_up(orchestrator, record.id)
            return None if deployment is None else (record, game, deployment)
        return None

    async def _native(self, ids: tuple[str, ...]) -> AsyncIterator[str]:
        """Our id of a server that uses its orchestrator's name for itself; asked twice, because that name may be
        written down a moment after the server has started."""
        if any(self._deployments.get(name) is not None for name in ids):
            return
        asked = {game.orchestrator for game in self._games.all() if game.ready == "context"}
        for tries in range(2):
            for name in asked:
                orchestrator = self._orchestrators.get(name)
                if not isinstance(orchestrator, KnowsNativeIds):
                    continue
                for native_id in ids:
                    if (found := await orchestrator.deployment_named(native_id)) is not None:
                        yield found
                        return
            if not tries and asked:
                await asyncio.sleep(_AGAIN)

    async def _look_up(self, orchestrator: Orchestrator, deployment_id: str) -> Deployment | None:
        """Where the deployment runs. A server sends its context once, so a silent orchestrator is asked again."""
        found: Deployment | None = None
        for tries in range(1, _TRIES + 1):
            try:
                found = await orchestrator.get(deployment_id)
                if found is None or found.ports or found.state is not RunState.STARTING:
                    return found
                # The server is quicker than its orchestrator, which does not know its ports yet.
                wait = backoff(tries, 0.2)
            except OrchestratorError as exc:
                log.warning(
                    "%s is ready, but %s does not know where: %s", deployment_id, orchestrator.name, exc
                )
                wait = backoff(tries, 0.2, retry_after=exc.retry_after)
            await asyncio.sleep(wait)
        return found

    async def _cert_digest(self, public_ip: str) -> str:
        """What the server wrote for its address, "" if nothing; waits at most `timeout` seconds for it."""
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


def decode_context(data: bytes) -> Context:
    """Parse a context message. Raises `Malformed` for anything but a JSON object that names a deployment."""
    if len(data) > _MAX_CONTEXT:
        raise Malformed(f"a context is at most {_MAX_CONTEXT} bytes")
    try:
        context: dict[str, Any] = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a deployment's context: {exc}") from exc
    ids = tuple(
        value
        for name in ("deployment_id", "request_id")
        if isinstance(value := context.get(name), str) and 0 < len(value) <= 100
    )
    if not ids:
        raise Malformed("a context names no deployment: neither deployment_id nor request_id")
    return Context(ids, _address(context.get("public_ip")))


def _address(value: object) -> str:
    """An IP address, "" for anything else: it becomes a key to watch, and `*` would match everybody's."""
    try:
        ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        return ""
    return str(value)
