"""Remembers used tokens, so that each is good for one connection over all transports of a gameserver."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from enum import StrEnum


class TokenClaim(StrEnum):
    """What a claim found."""

    NEW = "new"
    REPEATED = "repeated"  # the same holder asked before and is not connected yet
    TAKEN = "taken"  # another holder has it
    SPENT = "spent"  # it has already led to a connection
    FULL = "full"  # no room to remember it, so it may not be used

    @property
    def granted(self) -> bool:
        """Whether the token may be used."""
        return self in (TokenClaim.NEW, TokenClaim.REPEATED)


class UsedTokens:
    """The holder of each token, by the token's 16-byte tag.

    A tag belongs to the first holder that claims it (over UDP its address, over a stream the connection), and
    to no one once that holder has connected and ``spend`` was called. A holder that showed the token's session
    keys takes it from one that has not: a request over UDP travels in clear, so anybody on the way could have
    sent it first, and a player whose UDP answers are blocked must be able to fall back to a stream. Entries
    go `grace` seconds after their token expired, the margin for a wall clock that is set back. A full memory
    refuses new tokens: forgetting an unexpired one would let it in twice. All times are Unix seconds.
    """

    __slots__ = ("_capacity", "_expiries", "_grace", "_holders")

    def __init__(self, capacity: int = 16384, *, grace: float = 30.0) -> None:
        self._capacity = capacity
        self._grace = grace
        self._holders: dict[bytes, Hashable] = {}
        self._expiries: list[tuple[float, bytes]] = []

    def check(self, tag: bytes, holder: Hashable) -> TokenClaim:
        """What ``claim`` would find, without claiming; NEW also when there is no room."""
        held = self._holders.get(tag, _NOBODY)
        if held is _NOBODY:
            return TokenClaim.NEW
        if held is _SPENT:
            return TokenClaim.SPENT
        return TokenClaim.REPEATED if held == holder else TokenClaim.TAKEN

    def claim(
        self, tag: bytes, holder: Hashable, expire_timestamp: float, unix_now: float, *, proven: bool = False
    ) -> TokenClaim:
        """Take the token for `holder`; go on only if the result is ``granted``.

        `proven`: the holder presented the whole token with its session keys (``open_private`` checks them).
        """
        found = self.check(tag, holder)
        if found is TokenClaim.TAKEN and proven:
            self._holders[tag] = holder
            return TokenClaim.NEW
        if found is not TokenClaim.NEW:
            return found
        self.forget_expired(unix_now)
        if len(self._holders) >= self._capacity:
            return TokenClaim.FULL
        self._holders[tag] = holder
        heapq.heappush(self._expiries, (expire_timestamp + self._grace, tag))
        return TokenClaim.NEW

    def spend(self, tag: bytes, holder: Hashable) -> bool:
        """`holder` connects with the token it claimed: no one, including `holder`, may use it again.

        False, and nothing changes, when the token is not, or no longer, `holder`'s.
        """
        if self.check(tag, holder) is not TokenClaim.REPEATED:
            return False
        self._holders[tag] = _SPENT
        return True

    def forget_expired(self, unix_now: float) -> None:
        """Drop what can no longer be presented. ``claim`` does this by itself."""
        expiries = self._expiries
        while expiries and expiries[0][0] <= unix_now:
            del self._holders[heapq.heappop(expiries)[1]]

    def __len__(self) -> int:
        return len(self._holders)

    def __repr__(self) -> str:
        return f"UsedTokens({len(self)} of {self._capacity})"


_NOBODY = object()
_SPENT = object()
