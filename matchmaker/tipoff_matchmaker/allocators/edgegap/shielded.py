"""Work that several wait for, or that goes on when nobody does any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tipoff_shared.primitives.tasks import Tasks

T = TypeVar("T")


def begin(tasks: Tasks, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Owned by `tasks`, heard elsewhere: its outcome is told to whoever shields it."""
    task = asyncio.create_task(work, name=name)
    tasks.start(_waited_for(task), name)
    return task


async def _waited_for(task: asyncio.Future[Any]) -> None:
    try:
        await asyncio.wait((task,))
    finally:
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()
