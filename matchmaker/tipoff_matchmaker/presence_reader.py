"""Reads what game servers write, through durable consumers, so that nothing written while every matchmaker was away is
missed.

A message may be older than its key, and two members may read a put and a delete at once: so the key is read, and a
message is acted upon only if it is the key's current one. bevygap's bucket keeps a tombstone for every key for ever:
handled ones are removed, but only when they are acknowledged (`Bucket.forget`). So a tombstone that stays was handled
by nobody to the end, and the reconciler looks after it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tipoff_matchmaker.fleet.liveness import Liveness
from tipoff_matchmaker.sessions.state_machine import Connected, Left
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.errors import Internal, Malformed, TipoffError, Unavailable
from tipoff_shared.kv.bucket import Bucket
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.kv.changes import Ack, Change
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.primitives.text import describe
from tipoff_shared.primitives.waiting import gather_then_raise
from tipoff_shared.records import GameserverLease
from tipoff_shared.session_end import parse_end

log = logging.getLogger(__name__)

T = TypeVar("T")

CONNECTIONS = "matchmaker-connections"
LEASES = "matchmaker-leases"
"""Names of the durable consumers, shared by all matchmakers of a namespace."""


class PresenceReader:
    """Two loops: one reads connections, one reads leases."""

    def __init__(self, buckets: Buckets, sessions: SessionStore, liveness: Liveness) -> None:
        self._buckets = buckets
        self._sessions = sessions
        self._liveness = liveness

    async def connections(self) -> None:
        """Tell sessions who has connected and who has left, until cancelled."""
        await _read(self._buckets.active_connections, CONNECTIONS, self._connection)

    async def leases(self) -> None:
        """Follow the leases of all servers, until cancelled."""
        await _read(self._buckets.gameservers, LEASES, self._lease)

    async def _connection(self, change: Change[str], ack: Ack) -> None:
        session_id = change.key
        current = await self._buckets.active_connections.get(session_id)
        if change.value is not None:
            if current is not None and current.revision == change.revision:
                await self._sessions.apply(session_id, Connected())
            await ack()
        elif current is not None:
            await ack()
        else:
            await self._sessions.apply(session_id, Left(parse_end(change.why)) if change.why else Left())
            await ack.confirmed()
            await self._buckets.active_connections.forget(session_id, change.revision)

    async def _lease(self, change: Change[GameserverLease], ack: Ack) -> None:
        await self._liveness.lease_changed(change)
        await ack()


async def _read(store: Bucket[T], name: str, handle: Callable[[Change[T], Ack], Awaitable[None]]) -> None:
    """Let `handle` handle and acknowledge every change, a batch at a time, until cancelled; a change that cannot be
    handled now comes again."""

    async def read(pauses: Backoff) -> None:
        async with store.durable(name) as changes:
            while True:
                batch = await changes.fetch()
                pauses.reset()
                newest = {change.key: (change, ack) for change, ack in batch}
                older = [ack for change, ack in batch if newest[change.key][0] is not change]
                # All are done before the next reading: none goes on behind it.
                await gather_then_raise(
                    *(ack() for ack in older),
                    *(_handle(store, change, ack, handle) for change, ack in newest.values()),
                )

    await run_forever(
        read,
        first_pause=0.1,
        retry_on=Unavailable,
        on_failure=lambda failures, exc: log.info("reading %s: %s; again soon", store.bucket, describe(exc)),
    )


async def _handle(
    store: Bucket[T], change: Change[T], ack: Ack, handle: Callable[[Change[T], Ack], Awaitable[None]]
) -> None:
    try:
        await handle(change, ack)
    except (Internal, Malformed) as exc:  # repeating would not help: the key or the value is unusable
        log.warning("%s/%s is skipped: %s", store.bucket, change.key[:100], exc)
        await ack()
    except TipoffError as exc:
        log.info("%s/%s: %s; it comes again", store.bucket, change.key, exc)
    except Exception:  # one message that cannot be handled must not end the reading of all others
        log.exception("%s/%s could not be handled", store.bucket, change.key)
        await ack()
