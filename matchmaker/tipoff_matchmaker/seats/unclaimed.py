"""Counts, purely, the seats that each address holds and has not claimed, and decides how many those may be and how long
they are held.

A seat is unclaimed from the moment it is promised until its player connects. Who asks and never connects pays nothing
for it, so each address (an IPv6 /64 counts as one) has a share: at most `most` unclaimed seats of a game, and at most
half of the seats the game can have. An address whose seats keep expiring gets shorter holds.

Loopback and requests without an address have no share: each of them stands for itself. Times are Unix seconds.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

from tipoff_orchestrator_client.edgegap import SESSIONS
from tipoff_shared.admission.client_address import parse_address
from tipoff_shared.admission.limits import address_key
from tipoff_shared.games import Game, GameKey, SomeGames
from tipoff_shared.records import NOT_CLAIMED, SessionRecord, SessionState

Share: TypeAlias = tuple[str, GameKey]
"""An address's key and a game."""

FORGIVEN_AFTER = 600.0
"""Seconds after which seats that an address has not claimed are forgotten, when no further one follows."""
_LATE = 5.0
"""Seconds for which an expired seat is remembered, so that the end of its session is recognised."""
_MOST_ADDRESSES = 20_000
_UNLIMITED = 1 << 30


@lru_cache(maxsize=4096)
def share_address(client_ip: str) -> str:
    """The key under which a player at `client_ip` has a share; "" for none."""
    address = parse_address(client_ip) if client_ip else None
    return "" if address is None or address.is_unspecified else address_key(address)


def most_unclaimed(game: Game, most: int) -> int:
    """How many unclaimed seats of `game` one address may hold: `most`, and half of all there can be; 0: no limit."""
    return min(most, max(1, game.seats * game.max_deployments // 2)) if most else 0


def most_of(games: SomeGames, most: int, key: GameKey) -> int:
    """`most_unclaimed` of the game as it is now; `most` where only Edgegap knows how many seats there can be."""
    game = games.get(*key)
    return most if game is None or game.orchestrator == SESSIONS else most_unclaimed(game, most)


class UnclaimedSeats:
    """The unclaimed seats that this process knows of, and how reliably each address claims. Every operation takes
    logarithmic time at most.

    `most(game)`: unclaimed seats of the game that one address may hold (0 or None: no limit). The first `free_misses`
    seats that an address lets expire cost it nothing; each further one halves its holds, down to `least_hold` seconds.
    """

    def __init__(self, most: Callable[[GameKey], int | None], *, free_misses: int, least_hold: float) -> None:
        self._most = most
        self._free_misses = free_misses
        self._least_hold = least_hold
        self._held: dict[str, tuple[Share, float]] = {}
        self._by_share: dict[Share, dict[str, None]] = {}
        self._ends: list[tuple[float, str]] = []
        self._misses: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, session_id: str, address: str, game: GameKey, until: float) -> None:
        """The session has a seat that it holds until `until` at the longest; replaces what was known of it."""
        if not address or not self._most(game):
            return
        share = (address, game)
        known = self._held.get(session_id)
        if known is not None:
            if known == (share, until):
                return
            self.drop(session_id)
        self._held[session_id] = (share, until)
        self._by_share.setdefault(share, {})[session_id] = None
        heapq.heappush(self._ends, (until, session_id))
        if len(self._ends) > 64 and len(self._ends) > 4 * len(self._held):
            self._ends = [(end, id) for id, (_, end) in self._held.items()]
            heapq.heapify(self._ends)

    def drop(self, session_id: str) -> Share | None:
        """The session holds no unclaimed seat; the share that has become smaller, if any."""
        known = self._held.pop(session_id, None)
        if known is None:
            return None
        share = known[0]
        sessions = self._by_share[share]
        del sessions[session_id]
        if not sessions:
            del self._by_share[share]
        return share

    def learn(self, record: SessionRecord, now: float) -> Share | None:
        """Take in a session's record, in whatever order records come; the share that has become smaller, if any."""
        if record.state is SessionState.READY:
            if record.deadline + _LATE > now:
                self.hold(
                    record.id, share_address(record.client_ip), (record.game, record.version), record.deadline
                )
            return None
        if record.state is SessionState.REQUESTED:
            return None
        share = self.drop(record.id)
        if share is not None:
            address = share[0]
            if record.state is SessionState.ACTIVE:
                self._claimed(address)
            elif record.reason == NOT_CLAIMED:
                self._missed(address, now)
        return share

    def may_take(self, address: str, game: GameKey, count: int, now: float) -> bool:
        """Whether the address may get `count` further seats at once. One that holds none always may: a party that is
        larger than the limit stays whole."""
        room = self.room(address, game, now)
        return room >= count or (room > 0 and not self._by_share.get((address, game)))

    def room(self, address: str, game: GameKey, now: float) -> int:
        """How many further seats the address may get; a very large number where it has no limit."""
        most = self._most(game)
        if not address or not most:
            return _UNLIMITED
        self._expire(now)
        return max(0, most - len(self._by_share.get((address, game), ())))

    def sessions_of(self, address: str, game: GameKey) -> list[str]:
        """The sessions that hold an unclaimed seat of the address."""
        return list(self._by_share.get((address, game), ()))

    def next_end(self, address: str, game: GameKey) -> float:
        """When the first of these seats is free again at the latest; 0 when there is none."""
        return min((self._held[id][1] for id in self._by_share.get((address, game), ())), default=0.0)

    def hold_factor(self, address: str, hold: float, now: float) -> float:
        """The part of the usual `hold` (seconds) for which the address's next seat is held: 1, or less when it has let
        too many expire."""
        misses, at = self._misses.get(address, (0, 0.0))
        if misses <= self._free_misses or now - at > FORGIVEN_AFTER:
            return 1.0
        return min(1.0, max(0.5 ** min(misses - self._free_misses, 30), self._least_hold / hold))

    def _claimed(self, address: str) -> None:
        misses, at = self._misses.get(address, (0, 0.0))
        if misses > 1:
            self._misses[address] = (misses - 1, at)
        else:
            self._misses.pop(address, None)

    def _missed(self, address: str, now: float) -> None:
        misses, at = self._misses.pop(address, (0, now))
        self._misses[address] = (1 if now - at > FORGIVEN_AFTER else misses + 1, now)
        if len(self._misses) > _MOST_ADDRESSES:
            self._misses.popitem(last=False)

    def _expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] + _LATE <= now:
            until, session_id = heapq.heappop(self._ends)
            known = self._held.get(session_id)
            if known is not None and known[1] == until:
                self.drop(session_id)
