"""Tries again: pauses that double, a call that is tried several times, a loop that runs until it is cancelled.

Pauses are seconds. They double from `first` to `longest` and are jittered (half to all of it), so that many who failed
at once do not come back at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NoReturn, TypeVar

LONGEST_PAUSE = 5.0
LONGEST_RETRY_AFTER = 60.0

T = TypeVar("T")


def backoff(
    attempt: int, first: float, *, longest: float = LONGEST_PAUSE, retry_after: float | None = None
) -> float:
    """Seconds to wait after the failed attempt number `attempt` (1, 2, ...); at least `retry_after`, which the other
    side asked for, up to one minute."""
    whole = min(longest, first * 2.0 ** (min(attempt, 20) - 1))
    jittered = whole * (0.5 + random.random() / 2)
    return max(jittered, min(retry_after or 0.0, LONGEST_RETRY_AFTER))


class Backoff:
    """The pauses of one loop: longer with each failure, short again after a success."""

    def __init__(self, first: float, *, longest: float = LONGEST_PAUSE) -> None:
        self._first = first
        self._longest = longest
        self.failures = 0
        """Failures in a row: 0 while all is well."""

    def reset(self) -> None:
        """It works: the next failure counts as the first one."""
        self.failures = 0

    def failed(self) -> None:
        """Count one failure."""
        self.failures += 1

    def pause(self) -> float:
        """Seconds to wait after the failures so far."""
        return backoff(max(1, self.failures), self._first, longest=self._longest)


async def run_forever(
    work: Callable[[Backoff], Awaitable[object]],
    *,
    first_pause: float,
    longest_pause: float = LONGEST_PAUSE,
    retry_on: type[Exception] | tuple[type[Exception], ...],
    on_failure: Callable[[int, Exception], None] | None = None,
) -> NoReturn:
    """Run `work` again and again until the task is cancelled, with a pause between two runs.

    `work` gets the loop's `Backoff` and calls its `reset()` whenever it makes progress. A run that returns (a stream
    that ended) counts as a failure like one that raises `retry_on`. `on_failure(failures, error)` hears of each
    error: log it there; what it raises ends the loop. Any other exception ends the loop as well: give it an owner that
    hears of it. Cancelling is safe where it is safe for `work`.
    """
    pauses = Backoff(first_pause, longest=longest_pause)
    while True:
        try:
            await work(pauses)
            pauses.failed()
        except retry_on as exc:
            pauses.failed()
            if on_failure is not None:
                on_failure(pauses.failures, exc)
        await asyncio.sleep(pauses.pause())


async def retry(
    call: Callable[[], Awaitable[T]],
    *,
    tries: int,
    first_pause: float,
    longest_pause: float = LONGEST_PAUSE,
    retry_if: Callable[[Exception], bool],
    on_failure: Callable[[int, Exception], None] | None = None,
) -> T:
    """What `call` returns, tried up to `tries` times.

    Only an exception for which `retry_if` says True is followed by another try; every other one, and the last one, is
    raised. `on_failure(number, error)` hears of each that is followed by another try. Pauses are as in `backoff`, with
    the exception's `retry_after` where it has one, and a little more: many who were told the same one shall come back
    one after another. Cancelling is safe where it is safe for `call`.
    """
    number = 0
    while True:
        try:
            return await call()
        except Exception as exc:
            number += 1
            if number >= tries or not retry_if(exc):
                raise
            if on_failure is not None:
                on_failure(number, exc)
            pause = backoff(
                number, first_pause, longest=longest_pause, retry_after=getattr(exc, "retry_after", None)
            )
        await asyncio.sleep(pause + random.uniform(0, first_pause))
