"""Keeps each address to its share of unclaimed seats: feeds the pure seats/unclaimed.py with sessions, and checks it.

    seat promised ──> held ──record ready──> held until its deadline ──claimed, ended or expired──> free

What this process knows is what it wrote, what it listed last, and what it reads again here. A player may have connected
without this process having noticed, because any matchmaker may handle that: so before anybody is refused, and every
second while somebody waits for the share of an address, the records of its sessions are read. Nobody is refused for
what is no longer true. What other matchmakers have given to an address shows with the next listing: until then
`n` matchmakers together may give it `n` times its share.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeAlias

from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.seats.allocation_request import AllocationRequest
from tipoff_matchmaker.seats.unclaimed import Share, UnclaimedSeats, share_address
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import SlowDown, Unavailable
from tipoff_shared.games import GameKey
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import SessionRecord

log = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[str, GameKey], None]
"""Called with an address and a game of which it holds fewer unclaimed seats than before."""

LIMITED, REFUSED, SHORTENED = "limited", "refused", "shortened"
"""What is counted: an address reached its share; a request was refused for it; a seat is held for a shorter time."""
_CHECK_INTERVAL = 1.0
"""Seconds between two readings of the sessions of one address."""
_LONGEST_RETRY = 10.0


class ClaimLimit:
    """The limit on unclaimed seats of one matchmaker. `most(game)`: unclaimed seats of a game for one address."""

    def __init__(
        self,
        sessions: SessionStore,
        most: Callable[[GameKey], int],
        metrics: Metrics,
        tasks: Tasks,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._sessions = sessions
        self._metrics = metrics
        self._clock = clock
        self._patience = settings.unclaimed_patience
        self._unclaimed = UnclaimedSeats(
            most, free_misses=settings.free_misses, least_hold=settings.least_hold
        )
        self._listeners: list[Listener] = []
        self._checks = SingleFlight[Share, None]("claims", begin=tasks.start)
        self._checked: dict[Share, float] = {}
        self.acted: Counter[str] = Counter()
        """How often it acted, by what it did."""
        sessions.subscribe(self._learn)

    def subscribe(self, listener: Listener) -> None:
        """Call `listener` when an address holds fewer unclaimed seats."""
        self._listeners.append(listener)

    def may_take(self, allocation: AllocationRequest) -> bool:
        """Whether the address of `allocation` may get its seats now, by what is known."""
        return self._unclaimed.may_take(
            allocation.address, allocation.key, len(allocation.members), self._clock()
        )

    def room(self, address: str, game: GameKey) -> int:
        """How many further seats the address may get now."""
        return self._unclaimed.room(address, game, self._clock())

    def hold(self, allocation: AllocationRequest, until: float) -> None:
        """Its seats are promised; without a session record they count until `until` (Unix seconds)."""
        for member in allocation.members:
            self._unclaimed.hold(member, allocation.address, allocation.key, until)

    def drop(self, members: Iterable[str]) -> None:
        """Seats that were promised are given back."""
        for share in {self._unclaimed.drop(member) for member in members}:
            self._tell(share)

    def hold_factor(self, client_ip: str, hold: float) -> float:
        """The part of the usual `hold` (seconds, the token's lifetime) for which a seat of a player at `client_ip` is
        held."""
        factor = self._unclaimed.hold_factor(share_address(client_ip), hold, self._clock())
        if factor < 1:
            self._count(SHORTENED)
        return factor

    def limited(self, allocation: AllocationRequest) -> None:
        """The address has reached its share, and its players wait."""
        self._count(LIMITED)
        log.info(
            "an address holds %d unclaimed seats of %s %s, as many as it may: its players wait",
            len(self._unclaimed.sessions_of(allocation.address, allocation.key)),
            *allocation.key,
        )

    def refuse_if_waited(self, allocation: AllocationRequest, since: float) -> None:
        """Raises `SlowDown` when its address has been without room since `since` (Unix seconds) for too long."""
        if self._clock() - since >= self._patience:
            raise self.refusal(allocation)

    def refusal(self, allocation: AllocationRequest) -> SlowDown:
        """The error for a player whose address has no room; counted as a refusal."""
        self._count(REFUSED)
        held = len(self._unclaimed.sessions_of(allocation.address, allocation.key))
        wait = self._unclaimed.next_end(allocation.address, allocation.key) - self._clock()
        retry_after = math.ceil(min(_LONGEST_RETRY, max(1.0, wait)))
        return SlowDown(
            f"{held} players at your address have seats and have not connected yet; "
            f"no more seats for this address before one of them does: try again in {retry_after} s",
            retry_after=retry_after,
        )

    async def check(self, address: str, game: GameKey) -> None:
        """Read the sessions that hold the unclaimed seats of the address again, at most once a second. Without NATS
        nothing changes. Cancelling is safe."""
        share = (address, game)
        now = asyncio.get_running_loop().time()
        if now < self._checked.get(share, 0.0) + _CHECK_INTERVAL and share not in self._checks:
            return
        self._checked[share] = now
        await self._checks.run(share, lambda: self._check(share))

    async def _check(self, share: Share) -> None:
        try:
            for session_id in self._unclaimed.sessions_of(*share):
                record = await self._sessions.read(session_id)
                if record is not None:  # else its seat is promised, and the record not written yet
                    self._learn(record)
        except Unavailable as exc:
            log.info("whether players of one address have connected is unknown: %s", exc)
        finally:
            self._forget_checks()

    def _forget_checks(self) -> None:
        if len(self._checked) > 1000:
            now = asyncio.get_running_loop().time()
            self._checked = {share: at for share, at in self._checked.items() if now < at + _CHECK_INTERVAL}

    def _learn(self, record: SessionRecord) -> None:
        self._tell(self._unclaimed.learn(record, self._clock()))

    def _tell(self, share: Share | None) -> None:
        if share is not None:
            for listener in self._listeners:
                listener(*share)

    def _count(self, action: str) -> None:
        self.acted[action] += 1
        self._metrics.claim_limit_acted(action)
