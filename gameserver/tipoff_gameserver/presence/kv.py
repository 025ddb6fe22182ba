"""Reports presence in the trusted profile: the server writes its lease and its connections into KV itself.

Memory holds what KV should say (the lease, the connected sessions). Two loops write it and retry for as long as it
takes, so after any outage of NATS the buckets say what is true.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict

import msgspec

from tipoff_gameserver.context import Context
from tipoff_gameserver.presence.interface import DescribeLease
from tipoff_gameserver.presence.reporter import REMEMBERED, WRITE_TIMEOUT, Reporter
from tipoff_shared.errors import TipoffError, Unavailable
from tipoff_shared.kv.bucket import LostRace, is_key
from tipoff_shared.kv.buckets import Buckets, buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.waiting import wait_for_event
from tipoff_shared.session_end import BY_ITSELF, SessionEnd

log = logging.getLogger(__name__)

_LOOK_UP_TIMEOUT = 2.0


class KvPresence(Reporter):
    """Writes `gameservers` and `active_connections`, and publishes `gameserver.contexts` once per process."""

    def __init__(self, context: Context, boot_id: str) -> None:
        super().__init__(context)
        self._announcement = msgspec.json.encode(context.announcement(boot_id))
        self._announced = False
        self._buckets: Buckets | None = None
        """Those of the present connection, None while there is none."""

        self._connected: dict[str, str] = {}
        """The truth: session id -> client id, in decimal."""
        self._unsure: dict[str, None] = {}
        """Sessions whose key may differ from the truth, in order."""
        self._written: dict[str, int] = {}
        """Revisions of the keys that we put and have not deleted; 0: the answer is not here yet."""
        self._unreported: dict[str, str] = {}
        """Sessions that have been here (with their client ids) and whose key was not put yet."""
        self._deleted: OrderedDict[str, int] = OrderedDict()
        """Keys deleted lately, with the revision of our put: a NATS that lost writes may have them again."""

        self._ends: OrderedDict[str, str] = OrderedDict()
        """Why sessions have left lately, where not by themselves. It stands in the tombstone."""

    def joined(self, session_id: str, client_id: int) -> None:
        """Put the session's key into `active_connections` soon."""
        self._connected[session_id] = str(client_id)
        self._ends.pop(session_id, None)
        if session_id not in self._written:
            self._unreported[session_id] = str(client_id)
        self._doubt(session_id)

    def left(self, session_id: str, end: SessionEnd = BY_ITSELF) -> None:
        """Delete the session's key soon, unless another server has written it."""
        if self._connected.pop(session_id, None) is not None and end != BY_ITSELF:
            self._ends[session_id] = end.encode()
            while len(self._ends) > REMEMBERED:
                self._ends.popitem(last=False)
        self._doubt(session_id)

    async def look_up(self, client_id: int) -> str | None:
        """The session in `sessions_ly2eg`; None also when NATS takes longer than two seconds."""
        if self._buckets is None:
            return None
        try:
            async with asyncio.timeout(_LOOK_UP_TIMEOUT):
                entry = await self._buckets.sessions_ly2eg.get(str(client_id))
        except (TimeoutError, TipoffError) as exc:
            log.warning("the session of client %d cannot be looked up: %s", client_id, str(exc) or "time-out")
            return None
        if entry is None:
            return None
        if not is_key(entry.value):  # reported, it could not be written, and would hold up the others
            log.warning("the session of client %d has an unusable name", client_id)
            return None
        return entry.value

    def resync(self) -> None:
        """Write the lease and check the key of every session that is connected or has left recently."""
        self._back.set()
        self._lease_due.set()
        for session_id in (*self._connected, *self._deleted):
            self._doubt(session_id)

    def _doubt(self, session_id: str) -> None:
        self._unsure[session_id] = None
        self._sessions_changed()

    def _connected_sessions(self) -> list[str]:
        return list(self._connected)

    async def _end_lease(self) -> None:
        if self._buckets is not None:
            await self._buckets.gameservers.delete(self._deployment_id)

    # --- the connection ---------------------------------------------------------------------------------------

    async def _serve(self, bus: Bus, describe: DescribeLease) -> None:
        kv = self._buckets = buckets(bus)
        self.resync()
        try:
            # A loop that fails is logged; then everything starts again with a new connection.
            async with Tasks("presence", on_failure=lambda _: bus.closed.set()) as tasks:
                tasks.start(self._keep_lease(kv, describe), "lease")
                tasks.start(self._keep_connections(kv), "connections")
                tasks.start(self._announce_context(bus), "context")
                await bus.closed.wait()
        finally:
            self._buckets = None

    async def _announce_context(self, bus: Bus) -> None:
        while not (self._announced or self._ended):
            try:
                await bus.publish(bus.subjects.contexts, self._announcement)
                self._announced = True
            except Unavailable:
                await self._pause()

    # --- the lease --------------------------------------------------------------------------------------------

    async def _keep_lease(self, kv: Buckets, describe: DescribeLease) -> None:
        failing = False
        while not self._closing:
            self._lease_due.clear()
            waiters, self._lease_waiters = self._lease_waiters, []
            try:
                async with asyncio.timeout(WRITE_TIMEOUT):
                    await kv.gameservers.put(self._deployment_id, describe(), ttl=self._lease_ttl)
            except BaseException as exc:
                self._lease_waiters += waiters
                if not isinstance(exc, TimeoutError | Unavailable):
                    raise  # they wait for the next connection
                if not failing:
                    log.warning("the lease cannot be written: %s; the game goes on", str(exc) or "time-out")
                failing = True
                await self._pause()
                continue
            if failing:
                log.info("the lease is written again")
            failing = False
            self._lease_reported(waiters)
            await wait_for_event(self._lease_due, self._lease_ttl / 3)

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
                        await self._correct(kv, session_id, wanted)
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

    async def _correct(self, kv: Buckets, session_id: str, wanted: str | None) -> None:
        """Make `active_connections[session_id]` what it should be, and change no other server's entry.

        The matchmaker may have moved the session to another server meanwhile: a key is deleted only while it is
        ours, by its revision.
        """
        bucket = kv.active_connections
        if wanted is not None:
            if session_id in self._written:
                entry = await bucket.get(session_id)
                if entry is not None and entry.value == wanted:
                    return
            self._written[session_id] = 0  # from here on it may be there, even if no answer comes
            self._written[session_id] = await bucket.put(session_id, wanted, server=self._deployment_id)
            self._unreported.pop(session_id, None)
            return
        if (visitor := self._unreported.get(session_id)) is not None:
            # It left before it was reported: unreported, the seat would wait for its player until the deadline.
            tried = session_id in self._written
            self._written[session_id] = 0
            try:
                self._written[session_id] = await bucket.create(session_id, visitor)
            except LostRace:
                if not tried:  # another server has it; it was not our earlier try that got through late
                    del self._written[session_id], self._unreported[session_id]
                    return
            self._unreported.pop(session_id, None)
        ours = self._written.get(session_id)
        if ours is None:  # we wrote no such key: it was deleted lately, or the matchmaker believes we have it
            entry = await bucket.get(session_id)
            if entry is None or entry.revision != self._deleted.get(session_id, entry.revision):
                return
            ours = entry.revision
        elif ours == 0 and (entry := await bucket.get(session_id)) is not None:
            ours = entry.revision
        if ours:
            with contextlib.suppress(LostRace):  # another server has written it since: it is not ours
                await bucket.delete(session_id, ours, why=self._ends.get(session_id, ""))
        self._written.pop(session_id, None)
        self._deleted[session_id] = ours
        self._deleted.move_to_end(session_id)
        while len(self._deleted) > REMEMBERED:
            self._deleted.popitem(last=False)
