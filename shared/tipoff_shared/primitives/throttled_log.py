"""Logs warnings that may occur many times a second at most once per interval, with their number."""

from __future__ import annotations

import logging
import time

INTERVAL = 5.0
"""Seconds between two log lines of the same kind."""


class ThrottledLog:
    """Logs each kind the first time it occurs, then at most every `INTERVAL` seconds with the number left out.

    Kinds are a few fixed words: nothing that a client can choose.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._logged_at: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def warning(self, kind: str, text: str, *args: object) -> bool:
        """Log a warning unless one of this kind was logged within the interval; returns whether it was logged."""
        due = self._due(kind)
        if due:
            self._log.warning(text + self._others(kind), *args)
        return due

    def exception(self, kind: str, text: str, exc: BaseException) -> None:
        """Log an error with the traceback of `exc`, unless one of this kind was logged within the interval."""
        if self._due(kind):
            self._log.error("%s%s", text, self._others(kind), exc_info=exc)

    def _due(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._logged_at.get(kind, -INTERVAL) < INTERVAL:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._logged_at[kind] = now
        return True

    def _others(self, kind: str) -> str:
        others = self._left_out.pop(kind, 0)
        return f" ({others} more since the last time)" if others else ""
