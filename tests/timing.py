"""How long something takes, on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable


async def quickest(act: Callable[[], Awaitable[object]], tries: int = 5) -> float:
    """Seconds that the quickest of a few tries takes: what the machine does meanwhile is only ever added."""
    took: list[float] = []
    for _ in range(tries):
        began = time.perf_counter()
        await act()
        took.append(time.perf_counter() - began)
    return min(took)
