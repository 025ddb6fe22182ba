"""Events of game servers of the isolated profile: read from the stream, unsealed, handed on (writer.py).

Any number of matchmakers read by one durable consumer; an event is acknowledged when what it says stands in the
buckets. Events of one server are handled one after another, and only so many in a second; those of different servers
side by side: one who sends much delays itself. Across matchmakers rules.py makes the order not matter.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable

import nats.errors
from nats.aio.msg import Msg
from nats.js import api

from tipoff_matchmaker.isolated.writer import EventWriter
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.pull_consumer import read_for_ever
from tipoff_shared.errors import Malformed, NotAllowed, TipoffError
from tipoff_shared.event_stream import DURABLE
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.server_events import EventKey, unseal

log = logging.getLogger(__name__)

_BATCH = 200
_WAIT = 1.0
"""Longest wait for events: after an outage of NATS the one that was asked then is never answered."""
_ACK_WAIT = 5.0
_TOO_LATE = 4.0
"""An event that has waited so long here comes again, to whoever has time."""
_IN_HAND = 2000
_PER_SECOND = 300.0
_BURST = 1.0
"""Seconds' worth of events of one server that are handled at once."""
_PACED = 4096
_COMPLAIN_EVERY = 10.0


class EventReader:
    """`key_of(deployment id)` is what its events must be sealed with."""

    def __init__(
        self,
        bus: Bus,
        writer: EventWriter,
        metrics: Metrics,
        tasks: Tasks,
        key_of: Callable[[str], EventKey],
    ) -> None:
        self._bus = bus
        self._writer = writer
        self._metrics = metrics
        self._key_of = key_of
        self._tasks = tasks
        self._lines: dict[str, deque[tuple[float, Msg]]] = {}
        """What waits to be handled: deployment id -> when it came, and the event."""
        self._waiting = 0
        self._room = asyncio.Event()
        self._paces: OrderedDict[str, float] = OrderedDict()
        """When each server will have used up what it may: those heard of lately."""
        self._refused = 0
        self._complained_at = -_COMPLAIN_EVERY

    async def run(self) -> None:
        """For ever; an outage of NATS ends nothing."""
        config = api.ConsumerConfig(
            durable_name=DURABLE,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=_ACK_WAIT,
            max_ack_pending=4 * _IN_HAND,
        )
        stream = self._bus.subjects.events_stream
        await read_for_ever(
            self._bus, stream, config, self._line_up_all, batch=_BATCH, wait=_WAIT, first_pause=0.1
        )

    async def _line_up_all(self, messages: list[Msg]) -> None:
        """Into their lines; returns when there is room for more."""
        for msg in messages:
            self._line_up(msg)
        while self._waiting >= _IN_HAND:
            self._room.clear()
            await self._room.wait()

    def _line_up(self, msg: Msg) -> None:
        deployment_id = self._bus.subjects.events_from(msg.subject)
        self._waiting += 1
        line = self._lines.get(deployment_id)
        if line is not None:
            line.append((time.monotonic(), msg))
        else:
            self._lines[deployment_id] = line = deque([(time.monotonic(), msg)])
            self._tasks.start(self._in_order(deployment_id, line), f"events/{deployment_id}")

    async def _in_order(self, deployment_id: str, line: deque[tuple[float, Msg]]) -> None:
        """The one who handles this server's events, for as long as there are some."""
        try:
            while line:
                came_at, msg = line.popleft()
                self._done(1)
                if time.monotonic() - came_at < _TOO_LATE and await self._handled(deployment_id, msg):
                    await msg.ack()
        except nats.errors.Error as exc:
            log.info("events of %s: %s; they come again", deployment_id, str(exc) or type(exc).__name__)
        finally:
            del self._lines[deployment_id]
            self._done(len(line))

    def _done(self, count: int) -> None:
        self._waiting -= count
        self._room.set()

    async def _handled(self, deployment_id: str, msg: Msg) -> bool:
        """Whether it need not come again."""
        try:
            event = unseal(self._key_of(deployment_id), deployment_id, msg.data, msg.headers)
        except (NotAllowed, Malformed) as exc:
            self._complain(deployment_id, exc)
            return True
        await self._pace(deployment_id)
        try:
            await self._writer.write_down(deployment_id, event)
        except TipoffError as exc:
            log.info("an event of %s: %s; it comes again", deployment_id, exc)
            return False
        except Exception:  # one event that cannot be handled must not end the reading of all others
            log.exception("an event of %s could not be handled", deployment_id)
        return True

    async def _pace(self, deployment_id: str) -> None:
        """A server that says more than any game needs waits here, and the rest of its events in the stream."""
        now = time.monotonic()
        until = max(now, self._paces.pop(deployment_id, now)) + 1 / _PER_SECOND
        self._paces[deployment_id] = until
        if len(self._paces) > _PACED:
            self._paces.popitem(last=False)
        if (ahead := until - now - _BURST) > 0:
            await asyncio.sleep(ahead)

    def _complain(self, deployment_id: str, exc: TipoffError) -> None:
        """Whoever sends such events sends many: one line for all of them."""
        self._metrics.event_refused(exc.code)
        self._refused += 1
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAIN_EVERY:
            log.warning(
                "%d event(s) of game servers refused; the last in the name of %r: %s",
                self._refused,
                deployment_id[:100],
                exc,
            )
            self._complained_at, self._refused = now, 0
