"""Keeps to Edgegap's rate limits: calls wait for their turn, first come, first served.

The rate is a little below the limit, because requests sent evenly may arrive in a bunch.
"""

from __future__ import annotations

import asyncio
from collections import deque

from tipoff_orchestrator_client.edgegap.api.errors import Busy
from tipoff_shared.primitives.token_bucket import TokenBucket

CREATE, STATUS, LIST, STOP, LOOK_UP = 40.0, 20.0, 10.0, 20.0, 5.0
"""Calls a second. The first three are Edgegap's limits (A: rate-limits); for the others none is known, so these are
careful."""

_MARGIN = 0.85
_BURST = 0.1
"""Seconds' worth of calls that may go at once after a pause: with the rate they stay under the limit in any second."""
_LATE = 0.5
"""Seconds by which a turn may come later than computed, on a busy machine."""
_CLOSE = 1e-6
"""Seconds: a turn that is so near is now."""


def bucket_below(limit: float, share: float = 1.0) -> TokenBucket:
    """A token bucket that stays below `share` of `limit` calls in any second.

    In any second at most rate + burst go: with a small share the burst of one is a large part of it.
    """
    ours = limit * share
    burst = max(1.0, ours * _BURST)
    return TokenBucket(max(ours / 2, min(ours * _MARGIN, ours - burst)), burst)


class Rate:
    """The calls of one kind: `limit` a second for the account, `share` of them for this process. `what` names the call
    in errors."""

    def __init__(self, what: str, limit: float, share: float = 1.0) -> None:
        self._what = what
        self._bucket = bucket_below(limit, share)
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, longest: float) -> None:
        """Wait for a turn, at most `longest` seconds.

        Raises `Busy` as soon as the wait is known to be longer: at once, or when Edgegap demands a pause meanwhile.
        Cancelling is safe, and leaves no turn unused.
        """
        now = asyncio.get_running_loop().time()
        if self._wait(now) > longest:
            raise self._busy(now, longest)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._serve()
        try:
            async with asyncio.timeout_at(now + longest + _LATE):
                await waiter
        except TimeoutError:
            if waiter.done() and not waiter.cancelled():
                return  # it came at the last moment
            raise self._busy(asyncio.get_running_loop().time(), longest) from None
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._bucket.give_back()  # taken, and not used
                self._serve()
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def _serve(self) -> None:
        """Let those go whose turn it is. A token is taken when it is used, never in advance: so a waiter that leaves
        wastes none, and a new one takes none from those before it."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            if self._waiting[0].done():  # it has left
                self._waiting.popleft()
            elif self._bucket.take(loop.time(), _CLOSE) is not None:
                self._waiting.popleft().set_result(None)
            else:
                self._timer = loop.call_later(self._bucket.wait(loop.time()), self._serve)
                return

    def _wait(self, now: float) -> float:
        """Seconds that a call made now would wait."""
        return self._bucket.wait(now, ahead=sum(not waiter.done() for waiter in self._waiting))

    def _busy(self, now: float, longest: float) -> Busy:
        later = self._wait(now)
        return Busy(
            f"too many calls to Edgegap at once: the next {self._what} can go in {later:.0f} s",
            retry_after=max(0.0, later - longest),
        )

    def free(self) -> bool:
        """Whether a call could go now."""
        return self._wait(asyncio.get_running_loop().time()) <= 0

    def pause(self, seconds: float) -> None:
        """Let no call go for `seconds`, not even those that wait already."""
        self._bucket.pause(asyncio.get_running_loop().time() + seconds)
