"""Gives each socket a place among those of its listener, counted under its client's address, and says who must go.

accepted        its address must not connect too often
                counts under the socket's peer; a trusted proxy's own connections count under nobody
head complete   behind a trusted proxy: counts under the address that the proxy names, for this request
request whole   proven: is not closed to make room
answered        idle: may be closed to make room
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from tipoff_shared.admission.client_address import (
    AddressRule,
    Headers,
    parse_address,
    peer_address,
    within,
)
from tipoff_shared.admission.connection_shares import ConnectionShares, Eviction
from tipoff_shared.admission.limits import ConnectionRate
from tipoff_shared.errors import SlowDown, TipoffError, Unavailable
from tipoff_shared.primitives.throttled_log import ThrottledLog

MAX_REFUSED = 64
"""Sockets without a place that may stay for a moment, to read why."""
RETRY_AFTER = 2.0
"""Seconds after which a client without a place may try again."""

Evict = Callable[[TipoffError], None]
"""Closes a socket, with the reason for its client. Called at most once, never within `enter` for the newcomer."""


def _closed(_: TipoffError) -> None:
    """Nothing is left to close."""


class Place:
    """The place of one socket. Its owner calls `leave` when the socket is closed; nothing else need be called then."""

    __slots__ = ("_named", "_peer", "_places", "_proxy", "evict", "refusal")

    def __init__(self, places: Places, peer: str | None, proxy: bool, evict: Evict) -> None:
        self._places = places
        self._peer = peer
        self._proxy = proxy
        self._named = False
        self.evict = evict
        """Replaced when another protocol takes the socket over."""
        self.refusal: TipoffError | None = None
        """Why it has no place: the answer to its first request."""

    def head_complete(self, headers: Headers) -> TipoffError | None:
        """A request begins. Behind a trusted proxy its headers name the client; returns the refusal when that one has
        too many connections already."""
        if self._proxy and self.refusal is None:
            self._named = self._places.name(self, self._peer, headers)
        return self.refusal

    def proven(self) -> None:
        """The client has asked for something: the socket stays until it is answered."""
        self._places.shares.prove(self)

    def idle(self) -> None:
        """The client has its answer."""
        if self._named:
            self._named = False
            self._places.shares.assign(self, None)
        else:
            self._places.shares.idle(self)

    def leave(self) -> None:
        """The socket is closed. Idempotent."""
        self.evict = _closed  # it refers to the protocol, which refers to this: a flood would be work for the collector
        self._places.leave(self)


class Places:
    """The places of one listener, or of several that share them."""

    def __init__(
        self,
        most: int,
        most_per_address: int,
        rule: AddressRule,
        refused: Callable[[str], None],
        log: ThrottledLog,
        setting: str = "",
        per_second: float = 0.0,
        most_refused: int = MAX_REFUSED,
    ) -> None:
        """`refused` counts a closed connection by its reason, one of a few fixed words. `setting`: the variable that
        sets `most`, for the log; with `_PER_ADDRESS` it sets the share. `per_second`: new connections of one address,
        0: no limit. `most_refused`: sockets without a place that may read why."""
        self.shares = ConnectionShares[Place](most, most_per_address)
        self._rule = rule
        self._count = refused
        self._log = log
        self._setting = setting
        self._refused: OrderedDict[Place, None] = OrderedDict()
        self._most_refused = most_refused
        self._rate = ConnectionRate(per_second, most_per_address, rule.trusted_proxies)
        self._too_often = SlowDown(
            "too many new connections a second from one address", retry_after=RETRY_AFTER
        )

    def __len__(self) -> int:
        return len(self.shares) + len(self._refused)

    def refusal(self, peer: str | None) -> TipoffError | None:
        """Why a socket just accepted from `peer` must be closed at once; None when it may stay. Asked once for each."""
        if self._rate.admits(peer, time.monotonic()):
            return None
        self._count("new connections of one address")
        self._log.warning(
            "connection rate",
            "closed a new connection of %s: its address connects too often (TIPOFF_HTTPD_CONNECTIONS_PER_SECOND)",
            peer,
        )
        return self._too_often

    def enter(self, peer: str | None, evict: Evict) -> Place:
        """A place for a new socket from `peer` (None: a Unix socket). Where there is none, `refusal` says why; `evict`
        is called when the socket must be closed."""
        address = parse_address(peer) if peer else None
        proxy = address is not None and within(address, self._rule.trusted_proxies)
        place = Place(self, peer, proxy, evict)
        self._carry_out(self.shares.enter(place, None if proxy else address), place)
        return place

    def name(self, place: Place, peer: str | None, headers: Headers) -> bool:
        """Count a proxy's connection under the client that it names; returns whether it named one."""
        address = peer_address(peer, headers, self._rule)
        if within(address, self._rule.trusted_proxies):
            return False  # its own request, such as a health check
        self._carry_out(self.shares.assign(place, address), place)
        return True

    def leave(self, place: Place) -> None:
        """The socket is closed."""
        self.shares.leave(place)
        self._refused.pop(place, None)

    def _carry_out(self, eviction: Eviction[Place] | None, newcomer: Place) -> None:
        if eviction is None:
            return
        place = eviction.connection
        error: TipoffError
        setting = self._setting
        if eviction.over_share:
            kind, most = "connections of one address", self.shares.most_per_address
            limit = f"{most} connections at once from one address"
            error = SlowDown(f"at most {limit}", retry_after=RETRY_AFTER)
            setting = setting and f"{setting}_PER_ADDRESS"
        else:
            kind, limit = "connections", f"{self.shares.most} connections at once"
            error = Unavailable("too many connections; try again in a moment", retry_after=RETRY_AFTER)
        self._count(kind)
        self._log.warning(
            kind,
            "closed %s connection of %s: there are at most %s%s",
            "a new" if place is newcomer else "an idle",
            eviction.party or "a trusted proxy",
            limit,
            setting and f" ({setting})",
        )
        if place is not newcomer:
            place.evict(error)
            return
        place.refusal = error
        self._refused[place] = None
        if len(self._refused) > self._most_refused:
            oldest, _ = self._refused.popitem(last=False)
            oldest.evict(error)
