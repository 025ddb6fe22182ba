"""Waits for a condition that nothing announces: a table that empties, a process that ends, a record that changes.

Where an event, a queue or a watch announces the condition, a test waits for that instead. Timeouts are multiplied by
`TIPOFF_TEST_TIME_SCALE` (default 1), for machines that are slower than ours.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT = 20.0
"""Seconds that a condition gets where the test names no timeout of its own."""

SCALE = float(os.environ.get("TIPOFF_TEST_TIME_SCALE", "1"))


async def eventually(
    probe: Callable[[], T | Awaitable[T]],
    what: str = "",
    timeout: float = TIMEOUT,
    *,
    unready: tuple[type[Exception], ...] = (),
) -> T:
    """Call `probe` until its result (awaited, if it is awaitable) is true, and return that result.

    Raises `AssertionError`, naming `what`, when no result was true within `timeout` seconds (times `SCALE`); a probe
    that takes longer is cancelled. An exception of a type in `unready` counts as not yet; others go to the caller.
    """
    timeout *= SCALE
    began, last = time.monotonic(), ""
    try:
        async with asyncio.timeout(timeout) as deadline:
            while True:
                try:
                    result = probe()
                    if inspect.isawaitable(result):
                        result = await result
                    if result:
                        return result
                except unready as exc:
                    last = repr(exc)
                await asyncio.sleep(_pause(time.monotonic() - began))  # nothing announces it
    except TimeoutError:
        if not deadline.expired():
            raise  # the probe's own
    raise AssertionError(_failure(probe, what, timeout, last))


def eventually_sync(
    probe: Callable[[], T],
    what: str = "",
    timeout: float = TIMEOUT,
    *,
    unready: tuple[type[Exception], ...] = (),
) -> T:
    """Like `eventually`, for code without an event loop: blocks the calling thread."""
    timeout *= SCALE
    began, last = time.monotonic(), ""
    while (elapsed := time.monotonic() - began) < timeout:
        try:
            if result := probe():
                return result
        except unready as exc:
            last = repr(exc)
        time.sleep(_pause(elapsed))  # nothing announces it
    raise AssertionError(_failure(probe, what, timeout, last))


def _pause(elapsed: float) -> float:
    """Seconds until the next look: a tenth of what has passed, so that a condition is noticed at most 10 % late."""
    return min(max(elapsed / 10, 0.005), 0.1)


def _failure(probe: object, what: str, timeout: float, last: str) -> str:
    text = f"not within {timeout:g} s: {what or getattr(probe, '__qualname__', repr(probe))}"
    return f"{text} (last: {last})" if last else text
