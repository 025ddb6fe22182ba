"""Where a reverse proxy sends the WebSocket of a player on `/gs/{deployment_id}`: to live servers of ours alone.

The address is what the orchestrator said of the server it started (`DeploymentRecord.proxy`, written by matchmakers
alone); a game server, which may be hostile, can at most choose the port within its own container. Game traffic never
passes through here: one question when a player connects, none while he plays.

Questions come in storms (a proxy that restarts sends every player anew), so answers are kept for two seconds. A
watch of the leases throws away what changed; it is a hint, and the short life of an answer is what one can rely on.
While NATS is away the last answer stays good for a minute: a server that is gone does not answer anyway.
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

from tipoff_shared.errors import Malformed, Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease

log = logging.getLogger(__name__)

FRESH = 2.0
"""Seconds an answer is given without asking again."""
FRESH_REFUSAL = 1.0
"""The same for "no such server": it may be about to become ready."""
STALE = 60.0
"""Seconds an answer is given when NATS cannot be asked."""
KEPT = 4096
"""Answers kept; the oldest go."""
READS = 32
"""Questions to NATS at one time."""
WAITING = 1024
"""Different deployments asked about at one time; more are told to come again."""
PATIENCE = 2.0
"""Seconds a question may take."""

_PROXY = re.compile(r"([a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,251}[a-zA-Z0-9])?)(?::([1-9][0-9]{0,4}))?", re.ASCII)
_LIVE = (DeploymentState.READY, DeploymentState.DRAINING)


def upstream_of(record: DeploymentRecord | None) -> str | None:
    """`host:port` of a live deployment's WebSocket listener, None where there is nothing to be proxied."""
    if record is None or record.state not in _LIVE or record.transports.websocket is None:
        return None
    found = _PROXY.fullmatch(record.proxy)
    if found is None:
        return None
    port = int(found[2]) if found[2] else record.websocket_port
    return f"{found[1]}:{port}" if 1 <= port <= 65535 else None


async def _upstream(store: Bucket[DeploymentRecord], deployment_id: str) -> str | None:
    try:
        entry = await store.get(deployment_id)
    except Malformed as exc:
        log.warning("the record of deployment %s cannot be read: %s", deployment_id, exc)
        return None
    return upstream_of(entry.value if entry is not None else None)


@dataclass(frozen=True, slots=True)
class _Known:
    upstream: str | None
    read_at: float

    def fresh(self, now: float) -> bool:
        return now - self.read_at < (FRESH if self.upstream is not None else FRESH_REFUSAL)

    def usable(self, now: float) -> bool:
        return now - self.read_at < STALE


class Upstreams:
    """One httpd's view. Times are the monotonic clock's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._reads: dict[str, asyncio.Future[str | None]] = {}
        self._outdated: set[str] = set()
        """What changed while it was being read: that answer is given, and not kept."""
        self._leases: dict[str, tuple[object, ...]] = {}
        self._room = asyncio.Semaphore(READS)
        self._store: Bucket[DeploymentRecord] | None = None
        self._tasks: Tasks | None = None

    @asynccontextmanager
    async def running(self, bus: Bus) -> AsyncIterator[None]:
        every = buckets(bus)
        async with Tasks("gs") as tasks:
            self._store, self._tasks = every.deployments, tasks
            tasks.start(self._watch(every.gameservers), "watch")
            try:
                yield
            finally:
                self._store = self._tasks = None

    async def find(self, deployment_id: str) -> str | None:
        """`host:port`, or None when there is no such live server; raises `Unavailable` when that is not known now.
        Askers of the same at one time share one question."""
        known = self._known.get(deployment_id)
        if known is not None and known.fresh(self._clock()):
            return known.upstream
        read = self._reads.get(deployment_id)
        if read is None:
            if self._tasks is None or self._store is None or len(self._reads) >= WAITING:
                raise Unavailable("too many questions at once; ask again", retry_after=1)
            read = self._reads[deployment_id] = asyncio.get_running_loop().create_future()
            self._tasks.start(self._read(self._store, deployment_id, read), deployment_id)
        try:
            return await asyncio.shield(read)
        except Unavailable:
            if known is not None and known.usable(self._clock()):
                return known.upstream
            raise

    async def _read(
        self, store: Bucket[DeploymentRecord], deployment_id: str, read: asyncio.Future[str | None]
    ) -> None:
        """One question to NATS; its outcome, whatever it is, goes into `read`."""
        self._outdated.discard(deployment_id)
        try:
            async with asyncio.timeout(PATIENCE), self._room:
                upstream = await _upstream(store, deployment_id)
        except Unavailable as exc:
            read.set_exception(exc)
        except TimeoutError:
            read.set_exception(Unavailable("NATS does not answer; ask again", retry_after=1))
        else:
            self._keep(deployment_id, upstream)
            read.set_result(upstream)
        finally:
            del self._reads[deployment_id]
            if not read.done():  # cancelled: this httpd ends
                read.set_exception(Unavailable("this httpd is going away; ask again", retry_after=1))
            read.exception()  # whoever asked may have gone

    def _keep(self, deployment_id: str, upstream: str | None) -> None:
        if deployment_id in self._outdated:
            self._outdated.discard(deployment_id)
            return
        self._known[deployment_id] = _Known(upstream, self._clock())
        self._known.move_to_end(deployment_id)
        while len(self._known) > KEPT:
            self._known.popitem(last=False)

    def hint(self, deployment_id: str, lease: GameserverLease | None) -> None:
        """A server's lease as the watch tells it; None: it is gone. Heartbeats change nothing."""
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
            self._outdated.add(deployment_id)

    async def _watch(self, store: Bucket[GameserverLease]) -> None:
        """For ever; begins again after each outage, and without what was known of leases before."""
        pause = 0.2
        while True:
            try:
                async with store.watch() as changes:
                    while True:
                        for change, ack in await changes.fetch():
                            self.hint(change.key, change.value)
                            await ack()
                        pause = 0.2
            except Unavailable as exc:  # NATS is away, or no matchmaker has made the buckets yet
                log.debug("watching leases: %s; again soon", exc)
                self._leases.clear()
                await asyncio.sleep(pause)
                pause = min(5.0, pause * 2)
