"""Reads bevygap's work queue of sessions to be deleted, under the name of bevygap's own reader.

A work queue has one reader, so this name is the only one that may read it. For us a message is a hint: "look at this
session, it is closing". The record decides.
"""

from __future__ import annotations

import asyncio
import logging

from nats.aio.msg import Msg
from nats.js import api

from tipoff_matchmaker.pull_consumer import read_for_ever
from tipoff_matchmaker.sessions.release import Releaser
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.errors import TipoffError
from tipoff_shared.nats.connection import Bus
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
        config = api.ConsumerConfig(durable_name=DURABLE, ack_policy=api.AckPolicy.EXPLICIT, ack_wait=30)
        await read_for_ever(
            self._bus,
            self._bus.subjects.delete_stream,
            config,
            self._all,
            batch=_BATCH,
            wait=_WAIT,
            first_pause=0.2,
            may_differ=True,  # bevygap's own reader may have made it
        )

    async def _all(self, messages: list[Msg]) -> None:
        await asyncio.gather(*map(self._handle, messages))

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
        await msg.ack()
