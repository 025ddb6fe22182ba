"""Trying again: pauses that double, with jitter, bounded, never shorter than the other side asked for."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import stamina
from stamina.instrumentation import set_on_retry_hooks

from tipoff_orchestrator_client.base import NoCapacity, OrchestratorError

_LONGEST = 5.0
_LONGEST_ASKED = 60.0

T = TypeVar("T")

set_on_retry_hooks([])  # each caller says itself what failed, with what it was about


def pause(tries: int, first: float, *, retry_after: float | None = None, longest: float = _LONGEST) -> float:
    """Seconds to wait after `tries` failed ones (1, 2, ...): half to all of the doubled pause, so that many who
    failed at once do not come back at once; at least what the other side asked for, up to a minute."""
    whole = min(longest, first * 2.0 ** (min(tries, 20) - 1))
    jittered = whole * (0.5 + random.random() / 2)
    return max(jittered, min(retry_after or 0.0, _LONGEST_ASKED))


async def retried(
    call: Callable[[], Awaitable[T]],
    *,
    tries: int,
    first: float,
    on_failure: Callable[[int, OrchestratorError], None],
) -> T:
    """What an orchestrator answers, asked up to `tries` times: again only where that may help.

    Raises the last `OrchestratorError`. `on_failure(number, error)` hears of each that is followed by another try.
    No room is no failure: what to do then is the caller's to decide.
    """
    failed = 0

    def again(exc: Exception) -> bool | float:
        nonlocal failed
        if not isinstance(exc, OrchestratorError) or not exc.retryable or isinstance(exc, NoCapacity):
            return False
        failed += 1
        if failed < tries:
            on_failure(failed, exc)
        # Many who were told the same Retry-After come back one after another all the same.
        return pause(failed, first, retry_after=exc.retry_after) + random.uniform(0, first)

    async for attempt in stamina.retry_context(on=again, attempts=tries, timeout=None):
        with attempt:
            return await call()
    raise AssertionError("stamina ends by a return or by the error")
