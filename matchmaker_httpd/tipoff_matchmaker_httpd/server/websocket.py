"""Adds limits to uvicorn's WebSocket protocol, and a cheaper handshake.

A player sends one message and answers pings. A client that sends many frames, a message in hundreds of pieces, or
megabytes at once is closed with 1008 before parsing them costs much. The closing handshake has a short deadline, a
client that reads nothing is cut off, and at shutdown the endpoint, not the protocol, ends the conversation.

uvicorn hands an upgrade to the `websockets` library as text, which parses it a second time: a fifth of what a player
costs. Here the handshake (RFC 6455 §4.2) is answered from the headers that are parsed already.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.protocol import State

from tipoff_matchmaker_httpd.admission.places import Place
from tipoff_matchmaker_httpd.server.connection import StallGuard, WrongMethod, WrongVersion, refusal
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.admission.answers import error_body
from tipoff_shared.errors import Malformed, TipoffError
from tipoff_shared.primitives.text import one_line

FRAMES = 32
FRAMES_PER_SECOND = 4
"""A connection may send FRAMES frames, and FRAMES_PER_SECOND more for every second it lives."""
MAX_EARLY = 8192
"""Bytes a client may send before it has seen the handshake: a hasty first message."""
_SLICE = 1024
"""Bytes parsed at once, so that a refusal stops the work whatever the chunk's size."""
TRY_LATER = 1013
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def accept_key(method: str, http_version: str, headers: list[tuple[bytes, bytes]]) -> bytes:
    """The Sec-WebSocket-Accept for an upgrade to a WebSocket; header names are in lower case. Pure.

    Extensions are not negotiated. Raises `Malformed`, `WrongMethod` or `WrongVersion`.
    """
    if method != "GET":
        raise WrongMethod("a WebSocket handshake is a GET")
    if http_version != "1.1":
        raise Malformed("a WebSocket handshake is HTTP/1.1")
    key = version = None
    for name, value in headers:
        if name == b"sec-websocket-key":
            if key is not None:
                raise Malformed("Sec-WebSocket-Key occurs twice")
            key = value.strip()
        elif name == b"sec-websocket-version":
            version = value.strip()
        elif name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0"):
            raise Malformed("a WebSocket handshake has no body")
    if version != b"13":
        raise WrongVersion("Sec-WebSocket-Version: 13 is expected")
    try:
        if key is None or len(base64.b64decode(key, validate=True)) != 16:
            raise Malformed("Sec-WebSocket-Key: 16 bytes in base64 are expected")
    except binascii.Error as exc:
        raise Malformed("Sec-WebSocket-Key: 16 bytes in base64 are expected") from exc
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _name(client: tuple[str, int] | None) -> str:
    return client[0] if client else "a client"


# uvicorn 0.54 (<0.55) and websockets 17.4 (<18): WebSocketsSansIOProtocol is not public, nor is the way in which its
# `conn` begins here with `state` and `parser` set. Used of uvicorn's: the constructor; `conn`, `transport`, `queue`,
# `tasks`, `connections`, `scope`, `frames`, `curr_msg_data_type`, `handshake_initiated`, `handshake_complete`,
# `close_sent`, `close_timer`, `close_timeout`, `disconnected`, `writable`, `default_headers`; `run_asgi`,
# `on_task_complete`, `handle_*`, `send_receive_event_to_app`, `start_keepalive`, `stop_keepalive`, `keepalive_timeout`.
class GuardedWebSocket(StallGuard, WebSocketsSansIOProtocol):
    """One WebSocket. Made by the HTTP protocol at the upgrade, with the state that all routes share."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        state: HttpdState,
        place: Place,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """`place`: the socket's, which this protocol leaves at the end."""
        super().__init__(config, server_state, app_state, _loop)
        self._place = place
        place.evict = self._evicted
        self.close_timeout = state.settings.close_timeout
        self._state = state
        self._began = self.loop.time()
        self._frames = 0
        self._drowned = False
        self._accept_key = b""
        self._early = b""
        self._flushing = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, by either side."""
        self._place.leave()
        self._unstall()
        super().connection_lost(exc)

    def _evicted(self, error: TipoffError) -> None:
        """The listener needs the socket's place: its client has not sent a request yet."""
        if self.handshake_complete and not self.close_sent:
            self.conn.send_text(error_body(error))
            self._close(TRY_LATER, one_line(error.message, 100))
        else:
            self.transport.abort()

    def take_over(self, transport: asyncio.Transport, head: Mapping[str, Any], url: bytes) -> None:
        """Begin with the head that the HTTP protocol has parsed: start the endpoint, or refuse the handshake."""
        self.connections.add(self)
        self.transport = transport
        transport.set_protocol(self)
        self.server, self.client = head["server"], head["client"]
        self.scheme = "wss" if head["scheme"] == "https" else "ws"
        self.handshake_initiated = True
        headers: list[tuple[bytes, bytes]] = head["headers"]
        try:
            self._accept_key = accept_key(head["method"], head["http_version"], headers)
            parsed = httptools.parse_url(url)
            path = parsed.path.decode("ascii")
        except (TipoffError, httptools.HttpParserError, UnicodeError) as exc:
            error = exc if isinstance(exc, TipoffError) else Malformed("not a WebSocket handshake")
            self._state.metrics.refused("handshake")
            self._state.log.warning(
                "handshake", "refused a WebSocket handshake of %s: %s", _name(self.client), error.message
            )
            self.transport.write(refusal(error))
            self.transport.close()
            return
        # This class does the handshake, the library the frames. So the library's parser begins at the first frame, as
        # for a ServerProtocol made with state=OPEN; making another one would cost 4 % of a play.
        self.conn.state = State.OPEN
        self.conn.parser = self.conn.parse()
        next(self.conn.parser)
        self.scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": self.scheme,
            "server": self.server,
            "client": self.client,
            "root_path": self.root_path,
            "path": self.root_path + (unquote(path) if "%" in path else path),
            "raw_path": self.root_path.encode() + parsed.path,
            "query_string": parsed.query or b"",
            "headers": headers,
            "subprotocols": [],
            "state": self.app_state.copy(),
            "extensions": {"websocket.http.response": {}},
        }
        self.queue.put_nowait({"type": "websocket.connect"})
        task = self.loop.create_task(self.run_asgi())
        task.add_done_callback(self.on_task_complete)
        self.tasks.add(task)

    # What arrives.

    def data_received(self, data: bytes) -> None:
        """Bytes from the client; before the handshake is answered they wait."""
        if not self.handshake_complete:
            if (
                len(self._early) <= MAX_EARLY
            ):  # one byte more than fits tells `_accept` that there was too much
                self._early += data[: MAX_EARLY + 1 - len(self._early)]
            return
        for start in range(0, len(data), _SLICE):
            if self._drowned or self.transport.is_closing():
                return
            super().data_received(data[start : start + _SLICE])

    def handle_text(self, event: Frame) -> None:
        """A text frame."""
        if self._allowed():
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """A binary frame."""
        if self._allowed():
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """A continuation frame."""
        if self._allowed():
            super().handle_cont(event)

    def handle_ping(self) -> None:
        """A ping frame."""
        if self._allowed():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        """A pong frame."""
        if self._allowed():
            super().handle_pong(event)

    def _allowed(self) -> bool:
        self._frames += 1
        if self._drowned:
            return False
        if self._frames <= FRAMES + FRAMES_PER_SECOND * (self.loop.time() - self._began):
            return True
        self._drowned = True
        self._state.metrics.refused("flood")
        self.transport.pause_reading()
        if not self.close_sent:
            self._close(1008, "too many messages")
        return False

    def send_receive_event_to_app(self) -> None:
        """A message is complete: pass it on, unless it is not UTF-8."""
        self._place.proven()
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:  # here, because uvicorn logs a traceback for what a client sends
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self._state.metrics.refused("not UTF-8")
                self._close(1007, "")
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        """The client broke the protocol: close with the code that the parser chose."""
        if self.close_sent:
            return
        self._state.metrics.refused("not WebSocket")
        closing = self.conn.close_sent
        code, reason = (closing.code, closing.reason) if closing is not None else (1006, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Send the protocol's last bytes. Reading goes on for a moment, or a reset would overtake them."""
        self.stop_keepalive()
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._linger(self._state.settings.linger)

    def _close(self, code: int, reason: str) -> None:
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self._say_goodbye()

    def _linger(self, seconds: float) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        """Close, without waiting for a client that does not read what is still to be sent."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # What is sent.

    async def send(self, message: Any) -> None:
        """Carry out what the endpoint sends. Raises `ClientDisconnected` when the WebSocket is closed."""
        if self.close_sent:  # by this protocol, while the endpoint was about to send
            raise ClientDisconnected
        if message["type"] == "websocket.send" and self._send_soon(message.get("text")):
            return
        if message["type"] == "websocket.accept":
            self._accept()
            return
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # else uvicorn logs that there was no answer
        if message["type"] == "websocket.close" and self.close_timer is not None:
            self.stop_keepalive()
            self._linger(self.close_timeout if message.get("code") == 1000 else self._state.settings.linger)

    def _accept(self) -> None:
        self.handshake_complete = True  # also where the client has gone, which is no fault of the endpoint's
        if self.disconnected or self.transport.is_closing():
            raise ClientDisconnected
        head = [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"]
        head += [b"%s: %s\r\n" % header for header in self.default_headers]
        head += [b"sec-websocket-accept: ", self._accept_key, b"\r\n\r\n"]
        self.transport.write(b"".join(head))
        self.start_keepalive()
        if self._early:
            early, self._early = self._early, b""
            if len(early) > MAX_EARLY:
                self._close(1008, "too much before the handshake")
            else:
                self.data_received(early)

    def _send_soon(self, text: str | None) -> bool:
        """Send messages that come together, and the close after them, in one write: system calls are most of what an
        answer costs. The protocol object keeps the order. False: the caller must take the usual way."""
        if (
            text is None
            or self.conn.state is not State.OPEN
            or self.disconnected
            or not self.writable.is_set()
        ):
            return False
        self.conn.send_text(text.encode())
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)
        return True

    def _flush(self) -> None:
        self._flushing = False
        if (output := self.conn.data_to_send()) and not self.transport.is_closing():
            self.transport.write(b"".join(output))

    def keepalive_timeout(self) -> None:
        """A ping was not answered in time."""
        self._state.metrics.refused("no pong")
        super().keepalive_timeout()
        self._linger(self._state.settings.linger)

    def shutdown(self) -> None:
        """Do nothing: at shutdown the endpoint ends the conversation with a reason, and the listener cuts the rest."""
