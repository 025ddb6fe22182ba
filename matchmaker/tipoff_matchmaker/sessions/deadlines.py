"""Closes sessions whose deadline has passed, and checks the player's connection before.

Deadlines in memory are hints from this process's own writes. The reconciler's listing of all sessions is the truth.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable

from tipoff_matchmaker.hearing import Hearing
from tipoff_matchmaker.sessions.state_machine import DeadlinePassed, Left
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.primitives.waiting import wait_for_event
from tipoff_shared.records import SessionRecord, SessionState
from tipoff_shared.session_end import parse_end


class Deadlines:
    """Calls `due(key)` soon after the time given for `key`; a later `add` for the same key replaces the time."""

    def __init__(self, clock: Callable[[], float], due: Callable[[str], Awaitable[None]]) -> None:
        self._clock = clock
        self._due = due
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._earlier = asyncio.Event()

    def __len__(self) -> int:
        return len(self._at)

    def add(self, key: str, at: float) -> None:
        """`at`: Unix seconds."""
        if self._at.get(key) == at:
            return
        self._at[key] = at
        heapq.heappush(self._heap, (at, key))
        if self._heap[0][0] >= at:
            self._earlier.set()

    def drop(self, key: str) -> None:
        """Forget the key; idempotent."""
        self._at.pop(key, None)  # its place in the heap goes when its time comes
        if len(self._heap) > 64 and len(self._heap) > 4 * len(self._at):
            self._heap = [(at, key) for key, at in self._at.items()]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """When the next key is due (Unix seconds); None when there is none."""
        while self._heap and self._at.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            at = self.next()
            self._earlier.clear()
            wait = None if at is None else at - self._clock()
            if wait is None or wait > 0:
                await wait_for_event(self._earlier, wait)
                continue
            _, key = heapq.heappop(self._heap)
            self._at.pop(key, None)
            try:
                await self._due(key)
            except TipoffError:
                self.add(key, self._clock() + 1.0)  # NATS is away; once more


_LOOK_AFTER = 4.0
"""Seconds after which a server's lease is looked at: a living one has been refreshed by then, every third of 10 s."""
_REPORTED = 5.0
"""Seconds in which a server that is connected has reported everybody who was connected when it came back."""
_AGAIN = 1.0


class SessionDeadlines:
    """The deadlines of all sessions that this process has written or listed. `run` is its loop.

    Nothing is closed for want of a connection before the servers could report theirs. After its start a process waits
    two TTLs of a lease for that, except at servers that are known to be connected: those that have written their lease
    since, some seconds ago.
    """

    def __init__(
        self,
        hearing: Hearing,
        buckets: Buckets,
        sessions: SessionStore,
        clock: Callable[[], float],
    ) -> None:
        self._hearing = hearing
        self._buckets = buckets
        self._sessions = sessions
        self._clock = clock
        self._deadlines = Deadlines(clock, self._due)
        self._looks = Deadlines(clock, self._look)
        self._spoke: dict[str, float] = {}
        """Servers whose lease was written since the start, and when that was seen (Unix seconds)."""
        self._looking: set[str] = set()
        sessions.subscribe(self._written)

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(self._deadlines.run(), self._looks.run())

    @property
    def settled(self) -> bool:
        """Whether game servers have been heard for so long that a missing lease or connection means something."""
        return self._hearing.settled

    async def check(self, session_id: str) -> None:
        """Close the session if its deadline has passed, or its player has left. Raises `Unavailable`.

        Nothing is closed before its connection has been looked up. The record is read first: where it says `active`,
        there has been a connection, and if there is none afterwards, the player has left. The other way round, a
        player who connects in between would be thrown out.
        """
        record = await self._sessions.read(session_id)
        if record is None:
            return
        latest = await self._buckets.active_connections.latest(session_id)
        connected = latest is not None and latest.value is not None
        why = "" if latest is None else latest.why
        if not connected and (latest is not None or record.state is SessionState.ACTIVE):
            await self._sessions.apply(session_id, Left(parse_end(why)) if why else Left())
        else:
            await self._sessions.apply(session_id, DeadlinePassed(connected))

    def _written(self, record: SessionRecord) -> None:
        if record.state not in (SessionState.REQUESTED, SessionState.READY):
            self._deadlines.drop(record.id)
            return
        self._deadlines.add(record.id, record.deadline + 0.01)
        server = record.deployment_id
        if server in self._spoke or server in self._looking or self.settled or not self._hearing.unbroken:
            return
        if server:
            self._looking.add(server)
            self._looks.add(server, self._clock() + _LOOK_AFTER)

    async def _look(self, deployment_id: str) -> None:
        self._looking.discard(deployment_id)
        lease = await self._buckets.gameservers.get(deployment_id)
        if lease is not None and self._hearing.is_news(lease.revision):
            self._spoke.setdefault(deployment_id, self._clock())

    async def _due(self, session_id: str) -> None:
        if self.settled:
            self._spoke.clear()
            await self.check(session_id)
            return
        record = await self._sessions.read(session_id)
        if record is None or record.state is not SessionState.READY:
            return  # the reconciler looks after it when everything is settled
        spoke = self._spoke.get(record.deployment_id)
        if spoke is not None and self._hearing.unbroken and self._clock() - spoke >= _REPORTED:
            await self.check(session_id)
        else:
            self._deadlines.add(session_id, self._clock() + _AGAIN)
