"""How often one address may ask: token buckets, in this process alone. No clock: `now` is an argument."""

from __future__ import annotations

from collections import OrderedDict

MAX_ADDRESSES = 20_000
"""Addresses remembered; beyond it the one that asked longest ago is forgotten."""


class RateLimit:
    """`rate` per second for each address, `burst` at once. Rate 0 is no limit."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str, now: float) -> float:
        """0.0 when it may; else the seconds after which it may again. "" (loopback) is not counted."""
        if not address or not self._rate:
            return 0.0
        tokens, then = self._tokens.pop(address, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._rate)
        allowed = tokens >= 1.0
        self._tokens[address] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._tokens) > MAX_ADDRESSES:
            self._tokens.popitem(last=False)
        return 0.0 if allowed else (1.0 - tokens) / self._rate
