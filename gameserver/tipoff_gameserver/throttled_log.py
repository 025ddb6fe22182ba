"""Logs a game server's frequent warnings at most once per interval, under the SDK's name."""

from __future__ import annotations

import logging

from tipoff_shared.primitives import throttled_log

log = logging.getLogger("tipoff_gameserver")


class ThrottledLog(throttled_log.ThrottledLog):
    """The SDK's throttled log."""

    def __init__(self) -> None:
        super().__init__(log)
