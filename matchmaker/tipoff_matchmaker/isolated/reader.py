"""Reads the events of untrusted game servers from their stream, unseals them and passes them to writer.py.

Any number of matchmakers read by one durable consumer; an event is acknowledged when what it says is written into the
buckets. Events of one server are handled one after another, and only so many in a second, refused ones included; those
of different servers side by side: a server that sends much delays only itself. What comes in the name of no server is
thrown away at once: it is acknowledged one by one, never purged, because a purge would acknowledge what precedes it.
Across matchmakers rules.py makes the order irrelevant.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nats.aio.msg import Msg
from nats.js import api

from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.isolated.writer import EventWriter
from tipoff_matchmaker.metrics import Metrics
from tipoff_shared.errors import Malformed, NotAllowed, TipoffError, Unavailable
from tipoff_shared.event_stream import DURABLE
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.jetstream import acknowledge, read_stream
from tipoff_shared.primitives.retry import run_forever
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.token_bucket import TokenBuckets
from tipoff_shared.server_events import EventKey, ServerEvent, unseal

log = logging.getLogger(__name__)

_BATCH = 500
_WAIT = 1.0
"""Seconds for which each request for events stays open: one made before an outage of NATS is never answered."""
_ACK_WAIT = 5.0
_TOO_LATE = 4.0
"""An event that has waited so long here is left to come again, perhaps at another matchmaker."""
_IN_HAND = 2000
_PER_SECOND = 300.0
"""Events of one server that are handled in a second, and at once after a pause."""
_PACED = 4096
_LOG_EVERY = 10.0


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A message of the stream, when it arrived, and the event in it: None when it is refused."""

    at: float
    msg: Msg
    event: ServerEvent | None


class EventReader:
    """Keeps a queue for each server. `key_of(deployment id)`: what the server's events must be sealed with."""

    def __init__(
        self,
        bus: Bus,
        writer: EventWriter,
        deployments: DeploymentStore,
        metrics: Metrics,
        tasks: Tasks,
        key_of: Callable[[str], EventKey],
    ) -> None:
        self._bus = bus
        self._writer = writer
        self._deployments = deployments
        self._metrics = metrics
        self._key_of = key_of
        self._tasks = tasks
        self._queues: dict[str, deque[_Arrived]] = {}
        """Deployment id -> events to handle."""
        self._waiting = 0
        self._room = asyncio.Event()
        self._paces = TokenBuckets[str](_PER_SECOND, _PER_SECOND, max_keys=_PACED)
        self._refused = 0
        self._logged_at = -_LOG_EVERY

    async def run(self) -> None:
        """Until cancelled; an outage of NATS does not end it."""
        config = api.ConsumerConfig(
            durable_name=DURABLE,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=_ACK_WAIT,
            max_ack_pending=4 * _IN_HAND,
        )
        stream = self._bus.subjects.events_stream
        await run_forever(
            lambda pauses: read_stream(
                self._bus,
                stream,
                config,
                self._queue_all,
                batch=_BATCH,
                wait=_WAIT,
                on_progress=pauses.reset,
            ),
            first_pause=0.1,
            retry_on=Unavailable,
            on_failure=lambda failures, exc: log.info("reading %s: %s; again soon", stream, exc),
        )

    async def _queue_all(self, messages: list[Msg]) -> None:
        """Add to the servers' queues; returns when there is room for more."""
        for msg in messages:
            deployment_id = self._bus.subjects.events_from(msg.subject)
            arrived = _Arrived(time.monotonic(), msg, self._unsealed(deployment_id, msg))
            if arrived.event is not None or self._deployments.get(deployment_id) is not None:
                self._enqueue(deployment_id, arrived)
            else:
                await acknowledge(msg)
        while self._waiting >= _IN_HAND:
            self._room.clear()
            await self._room.wait()

    def _unsealed(self, deployment_id: str, msg: Msg) -> ServerEvent | None:
        """The event; None when it is refused."""
        try:
            return unseal(self._key_of(deployment_id), deployment_id, msg.data, msg.headers)
        except (NotAllowed, Malformed) as exc:
            self._refuse(deployment_id, exc)
            return None

    def _enqueue(self, deployment_id: str, arrived: _Arrived) -> None:
        self._waiting += 1
        queue = self._queues.get(deployment_id)
        if queue is not None:
            queue.append(arrived)
        else:
            self._queues[deployment_id] = queue = deque([arrived])
            self._tasks.start(self._in_order(deployment_id, queue), f"events/{deployment_id}")

    async def _in_order(self, deployment_id: str, queue: deque[_Arrived]) -> None:
        """Handle this server's events while there are any; the only task that does."""
        try:
            while queue:
                arrived = queue.popleft()
                self._done(1)
                if time.monotonic() - arrived.at < _TOO_LATE and await self._handled(
                    deployment_id, arrived.event
                ):
                    await acknowledge(arrived.msg)
        except Unavailable as exc:
            log.info("events of %s: %s; they come again", deployment_id, exc)
        finally:
            del self._queues[deployment_id]
            self._done(len(queue))

    def _done(self, count: int) -> None:
        self._waiting -= count
        self._room.set()

    async def _handled(self, deployment_id: str, event: ServerEvent | None) -> bool:
        """Handle one event, None for a refused one; returns whether it may be acknowledged."""
        await self._pace(deployment_id)
        if event is None:
            return True
        try:
            await self._writer.write_down(deployment_id, event)
        except TipoffError as exc:
            log.info("an event of %s: %s; it comes again", deployment_id, exc)
            return False
        except Exception:  # one event that cannot be handled must not end the reading of all others
            log.exception("an event of %s could not be handled", deployment_id)
        return True

    async def _pace(self, deployment_id: str) -> None:
        """A server that sends more than any game needs waits here, and the rest of its events in the stream."""
        if (wait := self._paces.reserve(deployment_id, time.monotonic())) > 0:
            await asyncio.sleep(wait)

    def _refuse(self, deployment_id: str, exc: TipoffError) -> None:
        """Log refused events in one line for many: a server that sends one sends many."""
        self._metrics.event_refused(exc.code)
        self._refused += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY:
            log.warning(
                "%d event(s) of game servers refused; the last in the name of %r: %s",
                self._refused,
                deployment_id[:100],
                exc,
            )
            self._logged_at, self._refused = now, 0
