"""uvicorn's HTTP protocol with the limits it lacks: how long, how large, how many.

uvicorn leaves a connection open that sends nothing, half a request head, or a byte now and then, and it takes heads of
any size. Here a whole request, head and body, has one deadline from the moment the connection is idle; sizes are
bounded; a client that reads nothing is cut off; and every refusal has a typed body, `{"Error": [code, reason]}`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tipoff_matchmaker_httpd.server.refusal import refusal
from tipoff_matchmaker_httpd.server.stalled_readers import CutsOffStalledReaders
from tipoff_matchmaker_httpd.server.websocket import GuardedWebSocket
from tipoff_shared.errors import Malformed, NoServerInTime, TipoffError, TooLarge, Unavailable
from tipoff_shared.messages import MAX_MESSAGE

if TYPE_CHECKING:
    from tipoff_matchmaker_httpd.state import Httpd

MAX_HEAD = 16 * 1024
"""Bytes of a request line and its headers."""
MAX_HEADERS = 100
MAX_BODY = MAX_MESSAGE
_SLICE = 4096


class _HeadTooLarge(TipoffError):
    code = 431


class _Refused(Exception):
    """Stops the parser; the answer stands in `GuardedHttp._refusal`."""


class GuardedHttp(CutsOffStalledReaders, HttpToolsProtocol):
    """One HTTP connection. Made by `serve`, with the shared state of the endpoints."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        httpd: Httpd,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._httpd = httpd
        self._refusal: TipoffError | None = None
        self._request_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_size = 0
        self._body_size = 0
        self._max_body = MAX_BODY
        self._nothing_yet = True

    # The life of the connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        super().connection_made(transport)
        self._httpd.connections += 1
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._httpd.connections -= 1
        self._disarm()
        self._unstall()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self) -> None:
        if self._request_timer is None:
            self._request_timer = self.loop.call_later(self._httpd.settings.head_timeout, self._too_slow)

    def _disarm(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _too_slow(self) -> None:
        self._request_timer = None
        if self.transport.is_closing():
            return
        if self._nothing_yet:  # a browser's spare connection: nobody waits for an answer
            self.transport.close()
            return
        seconds = self._httpd.settings.head_timeout
        self._refuse(NoServerInTime(f"the request was not complete within {seconds:g} s"), "slow request")

    # What arrives.

    def data_received(self, data: bytes) -> None:
        self._nothing_yet = False
        if self._idle():
            self._arm()
        for start in range(
            0, len(data), _SLICE
        ):  # so that a refusal stops the work, whatever the chunk's size
            rest = self._feed(data[start : start + _SLICE])
            if self.transport.is_closing():
                return
            if rest is not None:  # a first message that did not wait for the handshake
                if rest := rest + data[start + _SLICE :]:
                    protocol = self.transport.get_protocol()
                    assert isinstance(protocol, GuardedWebSocket)
                    protocol.data_received(rest)
                return

    def _feed(self, data: bytes) -> bytes | None:
        """Parse; None while this is HTTP, else (it is a WebSocket now) what of `data` comes after the handshake."""
        self._unset_keepalive_if_required()
        if self._in_head:
            self._head_size += len(data)
        assert self.parser is not None
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as exc:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
                return data[exc.args[0] :]
        if self._in_head and self._head_size > MAX_HEAD and not self.transport.is_closing():
            self._refuse(_HeadTooLarge(f"a request head is at most {MAX_HEAD} bytes"), "head too large")
        return None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._body_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._stop(_HeadTooLarge(f"a request has at most {MAX_HEADERS} headers"))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_size = 0
        self._max_body = self._httpd.max_body(self.url, MAX_BODY)
        size = len(self.url)
        length: bytes | None = None
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"content-length":
                length = value
        if size > MAX_HEAD:
            self._stop(_HeadTooLarge(f"a request head is at most {MAX_HEAD} bytes"))
        if length is not None and (not length.isdigit() or len(length) > 9 or int(length) > self._max_body):
            self._stop(TooLarge(f"a request body is at most {self._max_body} bytes"))
        if self._httpd.connections > self._httpd.settings.max_connections:
            self._stop(Unavailable("too many connections; try again in a moment", retry_after=2))
        if not self._idle():  # uvicorn would tell only the last of several that their client left
            self._stop(Malformed("one request at a time on a connection; pipelining is not supported"))
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > self._max_body:
            self._stop(TooLarge(f"a request body is at most {self._max_body} bytes"))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._disarm()
        self._in_head = True
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """The connection becomes a WebSocket; its protocol takes the head as it is parsed."""
        self._disarm()
        self.connections.discard(self)
        self._httpd.connections -= 1  # the WebSocket counts itself
        protocol = GuardedWebSocket(self.config, self.server_state, self.app_state, self._httpd, self.loop)
        protocol.take_over(self.transport, self.scope, self.url)

    def _should_upgrade(self) -> bool:
        """A reverse proxy asks about a WebSocket with that very request's headers; the question is plain HTTP."""
        return not self.url.startswith(b"/internal/") and super()._should_upgrade()

    # Refusing.

    def _stop(self, error: TipoffError) -> None:
        self._refusal = error
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this when the parser stopped: for what it found, or for what we did."""
        error = self._refusal or Malformed("not an HTTP request")
        self._refuse(error, f"http {error.code}")

    def _refuse(self, error: TipoffError, reason: str) -> None:
        self._httpd.metrics.refused(reason)
        self._disarm()
        started = False
        if self.cycle is not None and not self.cycle.response_complete:
            started = self.cycle.response_started
            self.cycle.disconnected = True  # whatever the endpoint still says goes nowhere
            self.cycle.message_event.set()
        if not started:
            self.transport.write(refusal(error))
        self.transport.close()
