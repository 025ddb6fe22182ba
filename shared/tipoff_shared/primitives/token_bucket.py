"""Limits rates by token buckets. Pure: `now` is an argument, in seconds of any clock that the caller keeps to."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")


class TokenBucket:
    """`rate` tokens a second (above 0), at most `burst` of them (at least 1) at once after a pause. Begins full."""

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float = 1.0) -> None:
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._at = float("-inf")
        """When `_tokens` were counted. Below 0 they are owed: taken by `take` for a time to come."""

    def take(self, now: float, longest: float = 0.0, *, amount: float = 1.0) -> float | None:
        """Take `amount` tokens; the seconds after which they may be used, at most `longest`. None, and nothing is
        taken, if that would be later."""
        tokens = self._count(now)
        wait = self._until(amount, tokens)
        if wait > longest:
            return None
        self._tokens, self._at = tokens - amount, now
        return wait

    def give_back(self) -> None:
        """A token that was taken just now and not used."""
        self._tokens += 1.0

    def wait(self, now: float, *, ahead: int = 0) -> float:
        """Seconds until there is a token, without taking one; `ahead`: so many tokens go to others before."""
        return self._until(1.0 + ahead, self._count(now))

    def pause(self, until: float) -> None:
        """Give no token before the time `until`, and one then: the other side says so."""
        if (
            self._tokens + (until - self._at) * self.rate > 1.0
        ):  # not capped: with a burst of 1 there is no more
            self._tokens, self._at = 1.0, until

    def _count(self, now: float) -> float:
        if self._at == float("-inf"):
            return self.burst
        return min(self.burst, self._tokens + (now - self._at) * self.rate)

    def _until(self, wanted: float, tokens: float) -> float:
        return max(0.0, (wanted - tokens) / self.rate)


class TokenBuckets(Generic[K]):
    """A token bucket for each key (an address, a deployment), `max_keys` of them; beyond that the key that was used
    longest ago is forgotten. A `rate` of 0 is no limit; a `burst` below 1 counts as 1."""

    def __init__(self, rate: float, burst: float, *, max_keys: int = 20_000) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._max_keys = max_keys
        self._buckets: OrderedDict[K, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: K, now: float) -> float:
        """Take a token of `key`: 0.0 when there was one, else the seconds until there is one, and none is taken."""
        if not self._rate:
            return 0.0
        bucket = self._bucket(key)
        return 0.0 if bucket.take(now) is not None else bucket.wait(now)

    def reserve(self, key: K, now: float) -> float:
        """Take a token of `key` in any case; the seconds after which it may be used."""
        if not self._rate:
            return 0.0
        return self._bucket(key).take(now, math.inf) or 0.0

    def _bucket(self, key: K) -> TokenBucket:
        bucket = self._buckets.pop(key, None) or TokenBucket(self._rate, self._burst)
        self._buckets[key] = bucket
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return bucket
