"""Shares a listener's sockets fairly between client addresses, and decides which socket goes when there are too many.

A socket is *unproven* until its client has shown that it wants something (a whole request, a connect token) and
whenever it is idle again. Only unproven sockets are evicted:

    an address over its share   its own oldest unproven socket goes
    the listener is full        the oldest unproven socket of the address that has most of them goes

Where nothing may be evicted, the newcomer goes. So an address that opens sockets without end evicts its own, and
everybody else gets in. An IPv6 /64 is one address. Loopback addresses have no share of their own, but go like others
when the listener is full; a trusted proxy's own connections (address None) are never evicted.

Pure: no socket, no clock. Every call takes constant time, for it is the listener that is under attack.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from typing import Generic, TypeVar

from tipoff_shared.admission.client_address import Address

C = TypeVar("C")

_EXEMPT = ""
"""The party of connections that no address is charged with."""


@dataclass(frozen=True, slots=True)
class Eviction(Generic[C]):
    """A connection that must be closed now; the shares have forgotten it. It may be the newcomer itself."""

    connection: C
    party: str
    """The address that it counted under, an IPv6 /64 by its first address; "" for a trusted proxy's own."""
    over_share: bool
    """True: its address had more than its share (429). False: the listener was full (503)."""


class _Party:
    """The connections of one address."""

    __slots__ = ("held", "limited", "name", "unproven")

    def __init__(self, name: str, limited: bool) -> None:
        self.name = name
        self.limited = limited
        self.held = 0
        self.unproven: dict[object, None] = {}  # in the order of their age


class ConnectionShares(Generic[C]):
    """The connections of one listener. `C` is what the owner knows a connection by; it must be hashable.

    The owner calls `enter` when a connection begins, `prove` and `idle` as it changes, and `leave` when it ends. All
    but `enter` ignore connections that were evicted.
    """

    def __init__(self, most: int, most_per_address: int) -> None:
        """`most`: connections altogether; `most_per_address`: the share of one address. Both at least 1."""
        self.most = most
        self.most_per_address = most_per_address
        self._parties: dict[str, _Party] = {}
        self._party_of: dict[C, _Party] = {}
        self._by_unproven: list[dict[_Party, None]] = [{}]
        """Number of unproven connections -> the parties with that many; the last is not empty, except for number 0."""

    def __len__(self) -> int:
        return len(self._party_of)

    def __iter__(self) -> Iterator[C]:
        """Those that are here now; what ends meanwhile does no harm."""
        return iter(tuple(self._party_of))

    def __contains__(self, connection: C) -> bool:
        return connection in self._party_of

    @property
    def parties(self) -> int:
        """Addresses that hold a connection now."""
        return len(self._parties)

    def held_by(self, address: Address) -> int:
        """Connections of that address."""
        party = self._parties.get(party_key(address))
        return party.held if party is not None else 0

    def enter(self, connection: C, address: Address | None) -> Eviction[C] | None:
        """Take in a new connection, unproven. `address` None: of a trusted proxy, which no address is charged with.

        Returns what must be closed to make room, None when there is room.
        """
        party = self._join(connection, address)
        if address is not None:
            self._add_unproven(party, connection)
        if (eviction := self._over_share(connection, party)) is not None:
            return eviction
        if len(self._party_of) > self.most:
            greediest = next(iter(self._by_unproven[-1]), None) if len(self._by_unproven) > 1 else None
            victim = connection if greediest is None else self._oldest(greediest)
            return self._evict(victim, over_share=False)
        return None

    def claim(self, connection: C, address: Address) -> Eviction[C] | None:
        """As `enter`, for what its owner opens again at once: event streams, long polls. Nothing is gained by closing
        one for another of an address that holds as many. So the newcomer goes when its address is over its share, and
        when all are taken and no address holds more than its own would."""
        party = self._join(connection, address)
        self._add_unproven(party, connection)
        if party.limited and party.held > self.most_per_address:
            return self._evict(connection, over_share=True)
        if len(self._party_of) > self.most:
            greediest = next(iter(self._by_unproven[-1]))
            fair = len(greediest.unproven) <= len(party.unproven)
            return self._evict(connection if fair else self._oldest(greediest), over_share=False)
        return None

    def assign(self, connection: C, address: Address | None) -> Eviction[C] | None:
        """Charge a connection to another address from now on, unproven: a trusted proxy has named its client. None:
        to nobody again. Returns what must be closed because that address is over its share."""
        if connection not in self._party_of:
            return None
        self.leave(connection)
        party = self._join(connection, address)
        if address is not None:
            self._add_unproven(party, connection)
        return self._over_share(connection, party)

    def prove(self, connection: C) -> None:
        """Its client has shown what it wants: it is not evicted any more."""
        party = self._party_of.get(connection)
        if party is not None and connection in party.unproven:
            self._remove_unproven(party, connection)

    def idle(self, connection: C) -> None:
        """It may be evicted again, as the youngest of its address."""
        party = self._party_of.get(connection)
        if party is not None and party.name != _EXEMPT:
            if connection in party.unproven:
                del party.unproven[connection]
                party.unproven[connection] = None
            else:
                self._add_unproven(party, connection)

    def leave(self, connection: C) -> None:
        """It has ended. Idempotent."""
        party = self._party_of.pop(connection, None)
        if party is None:
            return
        if connection in party.unproven:
            self._remove_unproven(party, connection)
        party.held -= 1
        if not party.held:
            self._by_unproven[0].pop(party, None)
            del self._parties[party.name]

    def _join(self, connection: C, address: Address | None) -> _Party:
        name = _EXEMPT if address is None else party_key(address)
        party = self._parties.get(name)
        if party is None:
            limited = address is not None and not address.is_loopback
            party = self._parties[name] = _Party(name, limited)
            self._by_unproven[0][party] = None
        party.held += 1
        self._party_of[connection] = party
        return party

    def _over_share(self, newcomer: C, party: _Party) -> Eviction[C] | None:
        if not party.limited or party.held <= self.most_per_address:
            return None
        return self._evict(self._oldest(party) if party.unproven else newcomer, over_share=True)

    def _oldest(self, party: _Party) -> C:
        return next(iter(party.unproven))  # type: ignore[return-value]  # they are what `enter` was given

    def _evict(self, connection: C, *, over_share: bool) -> Eviction[C]:
        party = self._party_of[connection].name
        self.leave(connection)
        return Eviction(connection, party, over_share)

    def _add_unproven(self, party: _Party, connection: C) -> None:
        self._move(party, len(party.unproven), len(party.unproven) + 1)
        party.unproven[connection] = None

    def _remove_unproven(self, party: _Party, connection: C) -> None:
        del party.unproven[connection]
        self._move(party, len(party.unproven) + 1, len(party.unproven))

    def _move(self, party: _Party, before: int, after: int) -> None:
        levels = self._by_unproven
        if after == len(levels):
            levels.append({})
        del levels[before][party]
        levels[after][party] = None
        if len(levels) > 1 and not levels[-1]:
            levels.pop()


@lru_cache(maxsize=4096)
def party_key(address: Address) -> str:
    """What an address counts under: itself, an IPv6 address its /64. Other than `limits.address_key`, loopback
    addresses count."""
    if isinstance(address, IPv6Address) and not address.is_loopback:
        return str(IPv6Network((address, 64), strict=False).network_address)
    return str(address)
