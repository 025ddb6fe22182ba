"""Keeping to Edgegap's rate limits: whoever asks gets the next free moment, in the order of asking.

`Turns` is pure (a token bucket that tells when); `Rate` is the line of those who wait. What is kept to is a little less
than the limit: requests sent evenly may arrive in a bunch.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from tipoff_orchestrator_client.edgegap.api.errors import Busy

CREATE, STATUS, LIST, STOP, LOOK_UP = 40.0, 20.0, 10.0, 20.0, 5.0
"""Calls a second: the first three are Edgegap's own limits; of the others none is known, so these are careful."""

_MARGIN = 0.85
_BURST = 0.1
"""Seconds' worth of calls that may go at once after a pause: with the rate they stay under the limit in any second."""
_LATE = 0.5
"""Seconds by which a turn may come later than was foreseen, on a busy machine."""
_CLOSE = 1e-6
"""Seconds: a turn that is so near is now."""


@dataclass(slots=True)
class Turns:
    """`rate` turns a second, `burst` of them at once after a pause. Times are seconds of the caller's clock."""

    rate: float
    burst: float = 1.0
    _next: float = float("-inf")
    """When the bucket would be full again; a turn may be taken `burst - 1` turns before that."""

    def take(self, now: float, longest: float) -> float | None:
        """Seconds to wait for a turn, which is thereby taken; None, and nothing is taken, if that is over
        `longest`."""
        full = max(self._next, now)
        wait = max(0.0, full - (self.burst - 1) / self.rate - now)
        if wait > longest:
            return None
        self._next = full + 1 / self.rate
        return wait

    def give_back(self) -> None:
        """A turn that was taken just now and not used."""
        self._next -= 1 / self.rate

    def wait(self, now: float, *, ahead: int = 0) -> float:
        """Seconds after which one who asked now would have a turn; `ahead`: so many have theirs before."""
        return max(0.0, max(self._next, now) + (ahead - self.burst + 1) / self.rate - now)

    def pause(self, until: float) -> None:
        """No turn before `until`: the other side says so."""
        self._next = max(self._next, until + (self.burst - 1) / self.rate)


class Rate:
    """Turns of one kind of call, shared by all that make it: first come, first served."""

    def __init__(self, what: str, limit: float, share: float = 1.0) -> None:
        """`limit`: calls a second that Edgegap takes; `share`: the part of them that is ours."""
        self._what = what
        ours = limit * share
        burst = max(1.0, ours * _BURST)
        # In any second at most rate + burst go: of a small share the one of the burst is a large part.
        self._turns = Turns(max(ours / 2, min(ours * _MARGIN, ours - burst)), burst)
        self._line: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, longest: float) -> None:
        """Returns when it is one's turn. Raises `Busy` as soon as that is known to take over `longest` seconds: at
        once, or when Edgegap has asked for a pause meanwhile."""
        now = asyncio.get_running_loop().time()
        if self._wait(now) > longest:
            raise self._busy(now, longest)
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(waiter)
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
                self._turns.give_back()  # taken, and not used
                self._serve()
            raise
        finally:
            if waiter in self._line:
                self._line.remove(waiter)

    def _serve(self) -> None:
        """Those whose turn it is. A turn is taken when it is used, never ahead: one who leaves the line leaves no gap,
        and one who comes takes no moment that is somebody else's."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._line:
            if self._line[0].done():  # has left
                self._line.popleft()
            elif self._turns.take(loop.time(), _CLOSE) is not None:
                self._line.popleft().set_result(None)
            else:
                self._timer = loop.call_later(self._turns.wait(loop.time()), self._serve)
                return

    def _wait(self, now: float) -> float:
        """Seconds that one who came now would wait."""
        return self._turns.wait(now, ahead=sum(not waiter.done() for waiter in self._line))

    def _busy(self, now: float, longest: float) -> Busy:
        later = self._wait(now)
        return Busy(
            f"too much is asked of Edgegap just now: the next {self._what} can go in {later:.0f} s",
            retry_after=max(0.0, later - longest),
        )

    def free(self) -> bool:
        """Whether a call could go right now."""
        return self._wait(asyncio.get_running_loop().time()) <= 0

    def pause(self, seconds: float) -> None:
        """Nobody calls for so long, those included who wait already."""
        self._turns.pause(asyncio.get_running_loop().time() + seconds)
