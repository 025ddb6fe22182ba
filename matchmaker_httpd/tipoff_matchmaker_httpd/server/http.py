"""Adds limits to uvicorn's HTTP protocol: how long, how large, how many.

uvicorn keeps a connection open that sends nothing, half a request head, or a byte now and then, and it accepts heads of
any size. Here a whole request, head and body, has one deadline, counted from the moment the connection is idle. Sizes
are bounded, a client that reads nothing is cut off, and every refusal has a typed body, `{"Error": [code, reason]}`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from tipoff_matchmaker_httpd.admission.places import Place, Places
from tipoff_matchmaker_httpd.server.connection import HeadTooLarge, StallGuard, refusal
from tipoff_matchmaker_httpd.server.websocket import GuardedWebSocket
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.errors import Malformed, NoServerInTime, TipoffError, TooLarge
from tipoff_shared.messages import MAX_MESSAGE

MAX_HEAD = 16 * 1024
"""Bytes of a request line and its headers."""
MAX_HEADERS = 100
"""Headers of a request."""
MAX_BODY = MAX_MESSAGE
"""Bytes of a request body, where the path has no limit of its own."""
_SLICE = 4096
"""Bytes parsed at once, so that a refusal stops the work whatever the chunk's size."""


class _Refused(Exception):
    """Stops the parser; the answer is in `GuardedHttp._refusal`."""


# uvicorn 0.54 (<0.55): HttpToolsProtocol is not public. Used here: its constructor; `parser`, `cycle`, `url`,
# `headers`, `scope`, `transport`, `connections`; the parser's callbacks; `_should_upgrade`,
# `_unset_keepalive_if_required`, `send_400_response`, `shutdown`.
class GuardedHttp(StallGuard, HttpToolsProtocol):
    """One HTTP connection. Made by the listener for each socket, with the state that all routes share."""

    _place: Place

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        state: HttpdState,
        places: Places,
        place: Place | None = None,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`places`: those of the listener; `place`: that of the socket, where the listener gave it one already."""
        super().__init__(config, server_state, app_state, _loop)
        self._state = state
        self._places = places
        self._given_place = place
        self._refusal: TipoffError | None = None
        self._request_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_size = 0
        self._body_size = 0
        self._max_body = MAX_BODY
        self._nothing_yet = True
        """Not a byte has come."""

    # The life of the connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        """A client has connected."""
        super().connection_made(transport)
        place = self._given_place or self._places.enter(
            self.client[0] if self.client else None, self._evicted
        )
        place.evict = self._evicted
        self._place = place
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, by either side."""
        self._place.leave()
        self._disarm()
        self._unstall()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _arm(self) -> None:
        if self._request_timer is None:
            settings = self._state.settings
            # Without a place there is time enough to ask, and to read why.
            seconds = settings.head_timeout if self._place.refusal is None else settings.linger
            self._request_timer = self.loop.call_later(seconds, self._too_slow)

    def _disarm(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _too_slow(self) -> None:
        self._request_timer = None
        if self.transport.is_closing():
            return
        if self._nothing_yet:  # a browser's spare connection: it expects no answer
            self.transport.close()
            return
        if self._place.refusal is not None:
            self._refuse(self._place.refusal)
            return
        seconds = self._state.settings.head_timeout
        self._refuse(NoServerInTime(f"the request was not complete within {seconds:g} s"), "slow request")

    # What arrives.

    def data_received(self, data: bytes) -> None:
        """Bytes from the client: HTTP, and after an upgrade a first message that did not wait for the handshake."""
        self._nothing_yet = False
        if self._idle():
            self._arm()
        for start in range(0, len(data), _SLICE):
            upgrade = self._feed(data[start : start + _SLICE])
            if self.transport.is_closing():
                return
            if upgrade is not None:
                websocket, rest = upgrade
                if rest := rest + data[start + _SLICE :]:
                    websocket.data_received(rest)
                return

    def _feed(self, data: bytes) -> tuple[GuardedWebSocket, bytes] | None:
        """Parse. None while this is HTTP; after an upgrade the WebSocket, and what of `data` follows the handshake."""
        self._unset_keepalive_if_required()
        if self._in_head:
            self._head_size += len(data)
        parser: httptools.HttpRequestParser | None = self.parser
        if parser is None:  # the connection is lost
            return None
        try:
            parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("")
        except httptools.HttpParserUpgrade as exc:
            if self._should_upgrade():
                return self._upgrade(), data[exc.args[0] :]
        if self._in_head and self._head_size > MAX_HEAD and not self.transport.is_closing():
            self._refuse(HeadTooLarge(f"a request head is at most {MAX_HEAD} bytes"), "head too large")
        return None

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self._body_size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the head."""
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            self._stop(HeadTooLarge(f"a request has at most {MAX_HEADERS} headers"))

    def on_headers_complete(self) -> None:
        """The head is complete: check it, then start the endpoint."""
        self._in_head = False
        self._head_size = 0
        self._max_body = self._state.max_body(self.url, MAX_BODY)
        size = len(self.url)
        length: bytes | None = None
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name == b"content-length":
                length = value
        if size > MAX_HEAD:
            self._stop(HeadTooLarge(f"a request head is at most {MAX_HEAD} bytes"))
        if length is not None and (not length.isdigit() or len(length) > 9 or int(length) > self._max_body):
            self._stop(TooLarge(f"a request body is at most {self._max_body} bytes"))
        if (refusal := self._place.head_complete(self.headers)) is not None:
            self._stop(refusal)
        if not self._idle():  # uvicorn tells only the last of several endpoints that its client has left
            self._stop(Malformed("one request at a time on a connection; pipelining is not supported"))
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_size += len(body)
        if self._body_size > self._max_body:
            self._stop(TooLarge(f"a request body is at most {self._max_body} bytes"))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete: its deadline is met."""
        self._disarm()
        self._in_head = True
        if not self._idle():  # else it was answered before it was complete
            self._place.proven()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The endpoint has answered."""
        self._place.idle()
        super().on_response_complete()

    def _upgrade(self) -> GuardedWebSocket:
        """The connection becomes a WebSocket, whose protocol gets the parsed head."""
        self._disarm()
        self.connections.discard(self)
        websocket = GuardedWebSocket(
            self.config, self.server_state, self.app_state, self._state, self._place, self.loop
        )
        websocket.take_over(self.transport, self.scope, self.url)
        return websocket

    def _should_upgrade(self) -> bool:
        """Not for a reverse proxy that asks about a WebSocket: it sends that request's headers, but speaks HTTP."""
        return not self.url.startswith(b"/internal/") and super()._should_upgrade()

    # Refusing.

    def _evicted(self, error: TipoffError) -> None:
        """The listener needs the socket's place. A client that has asked for something reads why."""
        asked = self._head_size > 0 if self._in_head else not self._idle()
        if asked and not self.transport.is_closing():
            self._refuse(error)
        else:
            self.transport.close()

    def _stop(self, error: TipoffError) -> None:
        self._refusal = error
        raise _Refused

    def send_400_response(self, msg: str) -> None:
        """The parser stopped, for its own error or because a limit stopped it."""
        error = self._refusal or Malformed("not an HTTP request")
        self._refuse(error, "" if error is self._place.refusal else f"http {error.code}")

    def _refuse(self, error: TipoffError, reason: str = "") -> None:
        """Answer with `error` and close. `reason` "": it is counted already."""
        if reason:
            self._state.metrics.refused(reason)
        self._disarm()
        started = False
        if self.cycle is not None and not self.cycle.response_complete:
            started = self.cycle.response_started
            self.cycle.disconnected = True  # what the endpoint still sends goes nowhere
            self.cycle.message_event.set()
        if not started:
            self.transport.write(refusal(error))
        self.transport.close()
