"""Reads bevygap's work queue of sessions to be deleted, under the name of bevygap's own reader.

A work queue has one reader, so this name is the only one that may read it. For us a message is a hint: "look at this
session, it is closing". The record decides.
"""

from __future__ import annotations

import logging

from nats.aio.msg import Msg
from nats.js import api

from tipoff_matchmaker.sessions.release import Releaser
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.jetstream import acknowledge, read_stream
from tipoff_shared.primitives.retry import run_forever
from tipoff_shared.primitives.waiting import gather_then_raise
from tipoff_shared.records import SessionState

log = logging.getLogger(__name__)

DURABLE = "api-deleter-1"
_BATCH = 100
_WAIT = 5.0


class DeleteQueue:
    """One reader of many: all matchmakers share the durable consumer."""

    def __init__(self, bus: Bus, sessions: SessionStore, releaser: Releaser) -> None:
        self._bus = bus
        self._sessions = sessions
        self._releaser = releaser

    async def run(self) -> None:
        """Until cancelled; an outage of NATS does not end it."""
        stream = self._bus.subjects.delete_stream
        config = api.ConsumerConfig(durable_name=DURABLE, ack_policy=api.AckPolicy.EXPLICIT, ack_wait=30)
        await run_forever(
            lambda pauses: read_stream(
                self._bus,
                stream,
                config,
                self._all,
                batch=_BATCH,
                wait=_WAIT,
                may_differ=True,  # bevygap's own reader may have created it
                on_progress=pauses.reset,
            ),
            first_pause=0.2,
            retry_on=Unavailable,
            on_failure=lambda failures, exc: log.info("reading %s: %s; again soon", stream, exc),
        )

    async def _all(self, messages: list[Msg]) -> None:
        await gather_then_raise(*map(self._handle, messages))

    async def _handle(self, msg: Msg) -> None:
        session_id = msg.data.decode(errors="replace")
        try:
            if not self._releaser.handles(session_id):
                record = await self._sessions.read(session_id)
                if record is not None and record.state is SessionState.CLOSING:
                    await self._releaser.finish(record)
        except TipoffError as exc:
            log.info("delete queue, %s: %s; the reconciler finds it", session_id[:64], exc)
        except Exception:  # one message that cannot be handled must not end the reading of all others
            log.exception(
                "delete queue, %s could not be handled; the reconciler tries again", session_id[:64]
            )
        await acknowledge(msg)
