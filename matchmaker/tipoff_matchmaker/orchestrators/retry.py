"""Calls an orchestrator several times, where that may help."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tipoff_orchestrator_client.base import NoCapacity, OrchestratorError
from tipoff_shared.primitives.retry import retry

T = TypeVar("T")


async def retried(
    call: Callable[[], Awaitable[T]],
    *,
    tries: int,
    first: float,
    on_failure: Callable[[int, Exception], None],
) -> T:
    """What an orchestrator answers, called up to `tries` times; the first pause is `first` seconds.

    Raises the last `OrchestratorError`. `on_failure(number, error)` hears of each that is followed by another try.
    No room is no failure: the caller decides what to do then.
    """

    def may_help(exc: Exception) -> bool:
        return isinstance(exc, OrchestratorError) and exc.retryable and not isinstance(exc, NoCapacity)

    return await retry(call, tries=tries, first_pause=first, retry_if=may_help, on_failure=on_failure)
