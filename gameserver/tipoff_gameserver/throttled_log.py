"""Warnings that may come sixty times a second, said at most once in a while."""

from __future__ import annotations

import logging
import time

log = logging.getLogger("tipoff_gameserver")

INTERVAL = 5.0
"""Seconds between two complaints of the same kind."""


class Complaints:
    """Each kind is logged the first time it happens, then at most every `INTERVAL` seconds with the number left out."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def say(self, kind: str, text: str, *args: object) -> bool:
        """Log a warning, unless one of this kind was logged a moment ago; whether it was."""
        due = self._due(kind)
        if due:
            log.warning(text + self._others(kind), *args)
        return due

    def traceback(self, kind: str, text: str, exc: BaseException) -> None:
        if self._due(kind):
            log.error("%s%s", text, self._others(kind), exc_info=exc)

    def _due(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._said.get(kind, -INTERVAL) < INTERVAL:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._said[kind] = now
        return True

    def _others(self, kind: str) -> str:
        others = self._left_out.pop(kind, 0)
        return f" ({others} more since the last time)" if others else ""
