"""Serves `GET /internal/gs/{deployment_id}`: where a reverse proxy connects a browser's WebSocket to a game server.

It answers 204 with `X-Tipoff-Upstream: host:port` for a live deployment that has a WebSocket listener, else 404.
Caddy asks it by `forward_auth`, nginx by `auth_request` (see deploy/), and connects the player to that address.
So game traffic never passes through httpd: it answers one question when a player connects, and none while they play.

The address is what the orchestrator said of the server it started (`DeploymentRecord.proxy`, written by matchmakers
only). A game server, which may be hostile, can at most choose the port within its own container.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tipoff_matchmaker_httpd.state import HttpdState, header
from tipoff_shared.admission.client_address import parse_address, within
from tipoff_shared.errors import Malformed, NotAllowed, Unavailable
from tipoff_shared.kv.bucket import Bucket, Entry
from tipoff_shared.names import DEPLOYMENT_ID
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease

log = logging.getLogger(__name__)

UPSTREAM_HEADER = "X-Tipoff-Upstream"

FRESH = 2.0
"""Seconds that an answer is repeated without reading the record again."""
FRESH_REFUSAL = 1.0
"""The same for "no such server": it may be about to become ready."""
STALE = 60.0
"""Seconds that an answer is repeated while NATS cannot be read."""
KEPT = 4096
"""Answers kept; beyond that the oldest are forgotten."""
READS = 32
"""Records read at one time."""
WAITING = 1024
"""Deployments whose record is being read or waits for it; further ones get `Unavailable`."""
PATIENCE = 2.0
"""Seconds that reading a record may take."""
_FIRST_PAUSE = 0.2
"""Seconds until the watch is begun again after a failure; it doubles."""

_PROXY = re.compile(r"([a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?)(?::([1-9][0-9]{0,4}))?", re.ASCII)
_LIVE = (DeploymentState.READY, DeploymentState.DRAINING)


def gs_routes(state: HttpdState, upstreams: Upstreams) -> APIRouter:
    """The route that the reverse proxy asks."""
    router = APIRouter()

    @router.head("/internal/gs/{deployment_id}", include_in_schema=False)
    @router.get("/internal/gs/{deployment_id}", include_in_schema=False)
    async def gs(deployment_id: str, http: Request) -> Response:
        headers = http.scope["headers"]
        _check_peer(state, http)
        if header(headers, UPSTREAM_HEADER.lower().encode()) is not None:
            raise NotAllowed(
                f"{UPSTREAM_HEADER} belongs to the answer: the proxy must strip it from requests"
            )
        secure = http.scope["scheme"] == "https"
        if not state.origins.allows(header(headers, b"origin"), header(headers, b"host"), secure):
            raise NotAllowed(
                "pages of this origin may not play here; TIPOFF_HTTPD_ORIGINS lists those that may"
            )
        upstream = await upstreams.find(deployment_id) if DEPLOYMENT_ID.fullmatch(deployment_id) else None
        if upstream is None:
            raise HTTPException(404, "there is no such game server")
        answer = Response(status_code=204, headers={UPSTREAM_HEADER: upstream, "Cache-Control": "no-store"})
        if header(headers, b"upgrade") is not None:
            # The parser reads nothing after a head that asks for another protocol.
            answer.headers["Connection"] = "close"
        return answer

    return router


def _check_peer(state: HttpdState, http: Request) -> None:
    """Raise `NotAllowed` unless the socket's peer is in the operator's networks: players must not see addresses."""
    if http.client is None:  # a Unix socket
        return
    peer = parse_address(http.client.host)
    if peer is None or not within(peer, state.settings.internal_networks):
        raise NotAllowed(
            "this is for the reverse proxy, in one of the networks in TIPOFF_HTTPD_INTERNAL_NETWORKS"
        )


def upstream_of(record: DeploymentRecord | None) -> str | None:
    """`host:port` of a live deployment's WebSocket listener; None where there is nothing to connect to."""
    if record is None or record.state not in _LIVE or record.transports.websocket is None:
        return None
    found = _PROXY.fullmatch(record.proxy)
    if found is None:
        return None
    port = int(found[2]) if found[2] else record.websocket_port
    return f"{found[1]}:{port}" if 1 <= port <= 65535 else None


class Deployments(Protocol):
    """What `Upstreams` reads: the `deployments` bucket."""

    async def get(self, key: str) -> Entry[DeploymentRecord] | None:
        """The record of a deployment."""
        ...


@dataclass(frozen=True, slots=True)
class _Known:
    upstream: str | None
    read_at: float

    def fresh(self, now: float) -> bool:
        return now - self.read_at < (FRESH if self.upstream is not None else FRESH_REFUSAL)

    def usable(self, now: float) -> bool:
        return now - self.read_at < STALE


class Upstreams:
    """The answers of one httpd, kept for a moment.

    Requests come in storms: a proxy that restarts sends every player anew. Answers are repeated for two seconds; a
    watch of the leases drops what has changed. The watch is a hint, the short life of an answer is what holds. While
    NATS is away an answer stays good for a minute, because a server that is gone does not answer anyway. Times are
    those of `clock`, in seconds.
    """

    def __init__(self, deployments: Deployments, clock: Callable[[], float] = time.monotonic) -> None:
        self._deployments = deployments
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._reads = SingleFlight[str, str | None]("gs", limit=WAITING)
        self._room = asyncio.Semaphore(READS)
        self._changed: set[str] = set()
        """Deployments that changed while their record was being read: that answer is not kept."""
        self._leases: dict[str, tuple[object, ...]] = {}

    @property
    def kept(self) -> int:
        """Answers that are kept."""
        return len(self._known)

    @property
    def servers(self) -> frozenset[str]:
        """Deployments whose lease the watch has seen."""
        return frozenset(self._leases)

    @asynccontextmanager
    async def running(self, leases: Bucket[GameserverLease]) -> AsyncIterator[None]:
        """Watch the leases during the block. Leaving ends every `find` with `Unavailable`."""
        async with Tasks("gs") as tasks, self._reads:
            tasks.start(self._watch_forever(leases), "watch")
            yield

    async def find(self, deployment_id: str) -> str | None:
        """`host:port`, or None when there is no such live server; raises `Unavailable` when that cannot be known now.
        Simultaneous calls for one deployment share one read."""
        known = self._known.get(deployment_id)
        if known is not None and known.fresh(self._clock()):
            return known.upstream
        try:
            return await self._reads.run(deployment_id, lambda: self._read(deployment_id))
        except Unavailable:
            if known is not None and known.usable(self._clock()):
                return known.upstream
            raise

    async def _read(self, deployment_id: str) -> str | None:
        self._changed.discard(deployment_id)
        try:
            async with asyncio.timeout(PATIENCE), self._room:
                upstream = await self._upstream(deployment_id)
        except TimeoutError as exc:
            raise Unavailable("NATS does not answer; ask again", retry_after=1) from exc
        if deployment_id in self._changed:
            self._changed.discard(deployment_id)
            return upstream
        self._known[deployment_id] = _Known(upstream, self._clock())
        self._known.move_to_end(deployment_id)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return upstream

    async def _upstream(self, deployment_id: str) -> str | None:
        try:
            entry = await self._deployments.get(deployment_id)
        except Malformed as exc:
            log.warning("the record of deployment %s cannot be read: %s", deployment_id, exc)
            return None
        return upstream_of(entry.value if entry is not None else None)

    def hint(self, deployment_id: str, lease: GameserverLease | None) -> None:
        """Take in a server's lease, None when it has ended. Heartbeats change nothing."""
        if lease is None:
            if self._leases.pop(deployment_id, None) is None and deployment_id not in self._known:
                return
        else:
            now = (lease.boot_id, lease.state, lease.websocket_port, lease.transports.websocket)
            if self._leases.get(deployment_id) == now:
                return
            self._leases[deployment_id] = now
        self._known.pop(deployment_id, None)
        if deployment_id in self._reads:
            self._changed.add(deployment_id)

    async def _watch_forever(self, leases: Bucket[GameserverLease]) -> None:
        def failed(_: int, exc: Exception) -> None:
            log.debug("watching leases: %s; again soon", exc)
            self._leases.clear()

        async def watch(backoff: Backoff) -> None:
            async with leases.watch() as changes:
                while True:
                    for change, ack in await changes.fetch():
                        self.hint(change.key, change.value)
                        await ack()
                    backoff.reset()

        # NATS is away, or no matchmaker has made the buckets yet.
        await run_forever(watch, first_pause=_FIRST_PAUSE, retry_on=Unavailable, on_failure=failed)
