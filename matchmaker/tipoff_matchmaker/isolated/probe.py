"""Probes the stream of game servers' events, so that this matchmaker knows whether it hears them.

A probe is an event like theirs, in the name of no deployment: published to the stream, read by whichever matchmaker
gets it, and thrown away. While each is taken and soon delivered, so are the servers' own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from tipoff_matchmaker.hearing import Hearing, Position, trouble
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.event_stream import DURABLE
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import translated
from tipoff_shared.nats.jetstream import ask
from tipoff_shared.primitives.text import describe
from tipoff_shared.server_events import EventKey, Goodbye, ServerEvent, seal

log = logging.getLogger(__name__)

_ANSWER = 5.0
_BEGINNING = 0.2


class EventProbe:
    """Tells `hearing` what it finds, every quarter of `lease_ttl`. `key_of`: as for the reader of the events."""

    def __init__(
        self,
        bus: Bus,
        hearing: Hearing,
        instance: str,
        key_of: Callable[[str], EventKey],
        *,
        lease_ttl: float,
    ) -> None:
        self._bus = bus
        self._hearing = hearing
        self._name = f"_probe_{instance}"  # no deployment's id begins like this
        self._instance = instance
        self._key_of = key_of
        self._interval = lease_ttl / 4
        self._patience = lease_ttl / 2
        self._started_at = time.time()
        self._count = 0
        self._began = False
        self._unread: tuple[int, float] | None = None
        """Sequence in the stream of the latest probe, and when it was published, until it is read."""

    async def run(self) -> None:
        """Until cancelled; while NATS is away there is nothing to find."""
        while True:
            pause = self._interval
            try:
                await self.once()
            except TipoffError as exc:
                log.debug("the stream of events cannot be looked at: %s", exc)
                self._unread = None
                if self._began and self._bus.connected:
                    self._hearing.disturbed(describe(exc))
                elif not self._began:  # the reader is about to make its consumer
                    pause = min(pause, _BEGINNING)
            await asyncio.sleep(pause)

    async def once(self) -> None:
        """Look whether the latest probe was read, and publish another one. Raises `Unavailable`."""
        stream = self._bus.subjects.events_stream
        with translated():
            consumer = await self._bus.js.consumer_info(stream, DURABLE)
            state = await self._bus.js.stream_info(stream)
        self._began = True
        heard_at: float | None = None
        delivered = 0 if consumer.delivered is None else consumer.delivered.stream_seq
        if self._unread is not None and delivered >= self._unread[0]:
            heard_at, self._unread = self._unread[1], None
        probed_at = None if self._unread is None else self._unread[1]
        refused = "" if self._unread is not None else await self._publish()
        position = Position(
            time.monotonic(),
            state.state.messages,
            state.config.max_msgs or 0,
            state.state.bytes,
            state.config.max_bytes or 0,
            probed_at,
            refused,
        )
        if why := trouble(position, patience=self._patience):
            self._hearing.disturbed(why)
        elif heard_at is not None:
            self._hearing.heard(heard_at)

    async def _publish(self) -> str:
        """Publish a probe; why the stream does not take it, "" if it does."""
        self._count += 1
        event = ServerEvent(self._instance, self._started_at, self._count, Goodbye())
        body, headers = seal(self._key_of(self._name), self._name, event)
        at = time.monotonic()
        try:
            answer = await ask(
                self._bus, self._bus.subjects.events(self._name), body, headers, timeout=_ANSWER
            )
        except Unavailable as exc:
            return describe(exc)
        self._unread = (answer.seq, at)
        return ""
