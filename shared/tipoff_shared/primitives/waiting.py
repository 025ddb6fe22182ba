"""Waits: for several things at once, for the first of several events, for cancelled tasks to end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_then_raise(*works: Awaitable[T], at_once: int | None = None) -> list[T]:
    """Run all `works` to their end, side by side; the results in the same order.

    When some of them fail, the others still run to their end; then the first error in the order of `works` is raised.
    So nothing goes on behind the caller's back. `at_once` bounds how many run at one time. Cancelling cancels all of
    them, and returns when they have ended.
    """
    if at_once is None:
        outcomes = await asyncio.gather(*works, return_exceptions=True)
    else:
        room = asyncio.Semaphore(at_once)

        async def one(work: Awaitable[T]) -> T:
            async with room:
                return await work

        try:
            outcomes = await asyncio.gather(*map(one, works), return_exceptions=True)
        finally:
            for work in works:
                if asyncio.iscoroutine(work):
                    work.close()  # one that was cancelled before its turn has never begun
    results: list[T] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        results.append(outcome)
    return results


async def wait_for_event(event: asyncio.Event, timeout: float | None) -> bool:
    """Wait until `event` is set, at most `timeout` seconds (None: without limit); whether it is set.

    Cancelling is safe. The event stays as it is: the caller clears it.
    """
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


async def wait_for_any(*events: asyncio.Event) -> None:
    """Wait until one of `events` is set. Cancelling is safe and leaves no task behind."""
    if any(event.is_set() for event in events):
        return
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def cancel_all(tasks: Iterable[asyncio.Task[Any]], timeout: float) -> set[asyncio.Task[Any]]:
    """Cancel `tasks` and wait for their ends, at most `timeout` seconds; those that still run then."""
    pending = {task for task in tasks if not task.done()}
    end = asyncio.get_running_loop().time() + timeout
    while pending and (left := end - asyncio.get_running_loop().time()) > 0:
        # More than once, because `asyncio.wait_for` before Python 3.12 (nats-py waits by it) loses a cancellation that
        # comes together with what it waits for.
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=min(left, 1.0))
    return pending
