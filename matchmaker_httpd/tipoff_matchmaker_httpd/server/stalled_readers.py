"""What both guarded protocols do about a client that reads nothing: a limit of time, then the connection is cut.

uvicorn waits for ever, with the answer in memory.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tipoff_matchmaker_httpd.state import Httpd


class CutsOffStalledReaders(asyncio.Protocol):
    """Before uvicorn's protocol in the bases. `_unstall` belongs into `connection_lost`."""

    loop: asyncio.AbstractEventLoop
    transport: Any
    _httpd: Httpd
    _stall_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._httpd.settings.stall_timeout, self._stalled)

    def resume_writing(self) -> None:
        self._unstall()
        super().resume_writing()

    def _unstall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _stalled(self) -> None:
        self._httpd.metrics.refused("stalled reader")
        self.transport.abort()
