"""Holds what the HTTP and the WebSocket protocol share: refusals, and the end of clients that read nothing.

The errors that only a connection can meet, beside those of `tipoff_shared.errors`:

    TipoffError
    ├── WrongMethod     405  a WebSocket handshake that is not a GET
    ├── WrongVersion    426  another version of the WebSocket protocol; the answer names the supported one
    └── HeadTooLarge    431  a request head over a limit
"""

from __future__ import annotations

import asyncio
from typing import Any

# uvicorn 0.54 (<0.55): a private table of encoded status lines.
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.admission.answers import error_body, retry_after
from tipoff_shared.errors import TipoffError


class WrongMethod(TipoffError):
    """A WebSocket handshake is not a GET."""

    code = 405


class WrongVersion(TipoffError):
    """A WebSocket handshake asks for another version, RFC 6455 §4.4."""

    code = 426


class HeadTooLarge(TipoffError):
    """A request head is over a limit."""

    code = 431


def refusal(error: TipoffError) -> bytes:
    """A whole HTTP answer, written by the protocol before or instead of any endpoint: status, `{"Error": [code,
    reason]}`, and that the connection closes."""
    body = error_body(error)
    seconds = retry_after(error)
    return (
        STATUS_LINE[error.code]
        + b"content-type: application/json\r\nconnection: close\r\n"
        + (b"sec-websocket-version: 13\r\n" if error.code == WrongVersion.code else b"")
        + (b"retry-after: %d\r\n" % seconds if seconds is not None else b"")
        + b"content-length: %d\r\n\r\n" % len(body)
        + body
    )


class StallGuard(asyncio.Protocol):
    """Cuts off a client that reads nothing for too long; uvicorn waits for ever, with the answer in memory.

    Stands before uvicorn's protocol in the bases. `connection_lost` must call `_unstall`.
    """

    loop: asyncio.AbstractEventLoop
    transport: Any
    _state: HttpdState
    _stall_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """The transport's buffer is full: the client has so long to read."""
        super().pause_writing()
        if self._stall_timer is None:
            self._stall_timer = self.loop.call_later(self._state.settings.stall_timeout, self._stalled)

    def resume_writing(self) -> None:
        """The client has read."""
        self._unstall()
        super().resume_writing()

    def _unstall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _stalled(self) -> None:
        self._state.metrics.refused("stalled reader")
        self.transport.abort()
