"""Presence by NATS, trusted profile: this server writes its lease and its connections into KV itself.

What is wanted (the lease, the connected sessions) is state in memory; two loops bring KV into line with it and try
again for as long as it takes. A connection that is lost for good is made anew. So whatever NATS does, the game goes
on, and afterwards KV says what is true.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Mapping

import msgspec

from tipoff_gameserver.presence.over_nats import REMEMBERED, WRITE_TIMEOUT, OverNats
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.kv.bucket import Bucket, LostRace
from tipoff_shared.kv.buckets import Buckets, buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import LEASE_TTL
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

_LOOK_UP_TIMEOUT = 2.0


class NatsPresence(OverNats):
    """`announcement` is what `gameserver.contexts` is told once per process; `lease_ttl` is in seconds, and the lease
    is refreshed every third of it. Made anew for each server."""

    def __init__(
        self,
        settings: NatsSettings,
        deployment_id: str,
        *,
        announcement: Mapping[str, object],
        lease_ttl: int = LEASE_TTL,
    ) -> None:
        super().__init__(settings, deployment_id, lease_ttl)
        self._announcement = msgspec.json.encode(announcement)
        self._announced = False
        self._buckets: Buckets | None = None

        self._written: dict[str, int] = {}
        """Revisions of the keys that we put and have not deleted; 0: the answer is still out."""
        self._untold: dict[str, str] = {}
        """Sessions that have been here (with their client ids) and whose key was not put yet."""
        self._deleted: OrderedDict[str, int] = OrderedDict()
        """Keys deleted lately, with the revision of our put: a NATS that lost writes may have them again."""

    def joined(self, session_id: str, client_id: int) -> None:
        self._connected[session_id] = str(client_id)
        if session_id not in self._written:
            self._untold[session_id] = str(client_id)
        self._doubt(session_id)

    def left(self, session_id: str) -> None:
        self._connected.pop(session_id, None)
        self._doubt(session_id)

    async def look_up(self, client_id: int) -> str | None:
        if self._buckets is None:
            return None
        try:
            async with asyncio.timeout(_LOOK_UP_TIMEOUT):
                entry = await self._buckets.sessions_ly2eg.get(str(client_id))
        except (TimeoutError, TipoffError) as exc:
            log.warning("the session of client %d cannot be looked up: %s", client_id, str(exc) or "time-out")
            return None
        return entry.value if entry is not None else None

    async def _end_lease(self) -> None:
        if self._buckets is not None:
            await self._buckets.gameservers.delete(self._deployment_id)

    # --- the connection ---------------------------------------------------------------------------------------

    async def _serve(self, bus: Bus) -> None:
        self._buckets = buckets(bus)
        self._nats_is_back()
        try:
            # A loop that fails is logged; then everything begins again with a new connection.
            async with Tasks("presence", on_failure=lambda _: bus.closed.set()) as tasks:
                tasks.start(self._keep_lease(self._buckets), "lease")
                tasks.start(self._keep_connections(self._buckets), "connections")
                tasks.start(self._announce_context(bus), "context")
                await bus.closed.wait()
        finally:
            self._buckets = None

    def _nats_is_back(self) -> None:
        self._back.set()
        self._lease_due.set()
        for session_id in (*self._connected, *self._deleted):
            self._doubt(session_id)

    async def _announce_context(self, bus: Bus) -> None:
        while not (self._announced or self._ended):
            try:
                await bus.publish(bus.subjects.contexts, self._announcement)
                self._announced = True
            except Unavailable:
                await self._pause()

    # --- the lease --------------------------------------------------------------------------------------------

    async def _keep_lease(self, kv: Buckets) -> None:
        assert self._describe is not None
        failing = False
        while not self._closing:
            self._lease_due.clear()
            waiters, self._lease_waiters = self._lease_waiters, []
            try:
                async with asyncio.timeout(WRITE_TIMEOUT):
                    await kv.gameservers.put(self._deployment_id, self._describe(), ttl=self._lease_ttl)
            except (TimeoutError, Unavailable) as exc:
                self._lease_waiters += waiters
                if not failing:
                    log.warning("the lease cannot be written: %s; the game goes on", str(exc) or "time-out")
                failing = True
                await self._pause()
                continue
            if failing:
                log.info("the lease is written again")
            failing = False
            self._told_lease(waiters)
            try:
                async with asyncio.timeout(self._lease_ttl / 3):
                    await self._lease_due.wait()
            except TimeoutError:
                pass

    # --- the connections --------------------------------------------------------------------------------------

    async def _keep_connections(self, kv: Buckets) -> None:
        failing = False
        while not self._ended:
            await self._changed.wait()
            self._changed.clear()
            while self._unsure and not self._ended:
                session_id = next(iter(self._unsure))
                wanted = self._connected.get(session_id)
                try:
                    async with asyncio.timeout(WRITE_TIMEOUT):
                        await self._bring_into_line(kv, session_id, wanted)
                except (TimeoutError, TipoffError) as exc:
                    if not failing:
                        log.warning(
                            "active_connections cannot be written: %s; the game goes on",
                            str(exc) or "time-out",
                        )
                    failing = True
                    await self._pause()
                    continue
                failing = False
                if self._connected.get(session_id) == wanted:
                    del self._unsure[session_id]
            self._settled.set()

    async def _put(self, store: Bucket[str], session_id: str, client_id: str) -> int:
        """The revision of our entry. By compare-and-set, so that a put that timed out and arrives late is refused:
        it would be a later entry than the one we know, and nobody would ever delete it."""
        try:
            return await store.create(session_id, client_id)
        except LostRace:
            entry = await store.get(session_id)
            if entry is None:
                raise  # deleted just now; once more
            if entry.value == client_id:
                return entry.revision
            return await store.update(session_id, client_id, entry.revision)

    async def _bring_into_line(self, kv: Buckets, session_id: str, wanted: str | None) -> None:
        """Make `active_connections[session_id]` what it should be, touching nobody else's entry.

        The matchmaker may have given the session to another server meanwhile: a key is deleted only while it is
        ours, by its revision.
        """
        store = kv.active_connections
        if wanted is not None:
            if session_id in self._written:
                entry = await store.get(session_id)
                if entry is not None and entry.value == wanted:
                    return
            self._written[session_id] = 0  # from here on it may be there, even if no answer comes
            self._written[session_id] = await store.put(session_id, wanted)
            self._untold.pop(session_id, None)
            return
        if (visitor := self._untold.get(session_id)) is not None:
            # Gone before it was told: were nobody told, the seat would wait for its player until the deadline.
            tried = session_id in self._written
            self._written[session_id] = 0
            try:
                self._written[session_id] = await store.create(session_id, visitor)
            except LostRace:
                if (
                    not tried
                ):  # another server has it by now; it was not our earlier try that got through late
                    del self._written[session_id], self._untold[session_id]
                    return
            self._untold.pop(session_id, None)
        ours = self._written.get(session_id)
        if ours is None:  # not ours by our own account: deleted lately, or somebody else believes we have it
            entry = await store.get(session_id)
            if entry is None or entry.revision != self._deleted.get(session_id, entry.revision):
                return
            ours = entry.revision
        elif ours == 0 and (entry := await store.get(session_id)) is not None:
            ours = entry.revision
        if ours:
            with contextlib.suppress(LostRace):  # somebody else has written it since: not ours any more
                await store.delete(session_id, ours)
        self._written.pop(session_id, None)
        self._deleted[session_id] = ours
        self._deleted.move_to_end(session_id)
        while len(self._deleted) > REMEMBERED:
            self._deleted.popitem(last=False)
