"""uvicorn's WebSocket protocol with the limits it lacks.

A player sends one message and answers pings. Whoever sends many frames, a message in hundreds of pieces, or megabytes
at once is closed with 1008 before parsing it has cost anything to speak of. The closing handshake has a short deadline,
a client that reads nothing is cut off, and at shutdown the endpoint, not the protocol, says goodbye.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.protocol import State

from tipoff_matchmaker_httpd.server.handshake import accept_key
from tipoff_matchmaker_httpd.server.refusal import refusal
from tipoff_matchmaker_httpd.server.stalled_readers import CutsOffStalledReaders
from tipoff_shared.errors import Malformed, TipoffError

if TYPE_CHECKING:
    from tipoff_matchmaker_httpd.state import Httpd

FRAMES = 32
FRAMES_PER_SECOND = 4
"""A connection may send FRAMES frames, and so many more for every second it lives."""
MAX_EARLY = 8192
"""Bytes a client may send before it has seen the handshake: a hasty first message."""
_SLICE = 1024


class GuardedWebSocket(CutsOffStalledReaders, WebSocketsSansIOProtocol):
    """One WebSocket. Made by the HTTP protocol at the upgrade, with the shared state of the endpoints."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        httpd: Httpd,
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.close_timeout = httpd.settings.close_timeout
        self._httpd = httpd
        self._began = self.loop.time()
        self._frames = 0
        self._drowned = False
        self._accept_key = b""
        self._early = b""
        self._flushing = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._httpd.connections -= 1
        self._unstall()
        super().connection_lost(exc)

    def take_over(self, transport: asyncio.Transport, head: Mapping[str, Any], url: bytes) -> None:
        """Begin with the head that the HTTP protocol has parsed: start the endpoint, or refuse the handshake."""
        self.connections.add(self)
        self._httpd.connections += 1
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
            self._httpd.metrics.refused("handshake")
            self.transport.write(refusal(error))
            self.transport.close()
            return
        # The handshake is ours; frames are the library's. So its parser begins at the first frame, as it would for
        # a ServerProtocol made with state=OPEN; a second one would cost 4 % of a play.
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
        if not self.handshake_complete:
            if len(self._early) <= MAX_EARLY:  # one more than fits tells `_accept` that there was too much
                self._early += data[: MAX_EARLY + 1 - len(self._early)]
            return
        for start in range(0, len(data), _SLICE):  # so that a refusal stops the work
            if self._drowned or self.transport.is_closing():
                return
            super().data_received(data[start : start + _SLICE])

    def handle_text(self, event: Frame) -> None:
        if self._allowed():
            super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        if self._allowed():
            super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        if self._allowed():
            super().handle_cont(event)

    def handle_ping(self) -> None:
        if self._allowed():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if self._allowed():
            super().handle_pong(event)

    def _allowed(self) -> bool:
        self._frames += 1
        if self._drowned:
            return False
        if self._frames <= FRAMES + FRAMES_PER_SECOND * (self.loop.time() - self._began):
            return True
        self._drowned = True
        self._httpd.metrics.refused("flood")
        self.transport.pause_reading()
        if not self.close_sent:
            self._close(1008, "too many messages")
        return False

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:  # here, because uvicorn logs an error with a traceback for whatever a client sends
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.frames = []
                self._httpd.metrics.refused("not UTF-8")
                self._close(1007, "")
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        if self.close_sent:
            return
        self._httpd.metrics.refused("not WebSocket")
        closing = self.conn.close_sent
        code, reason = (closing.code, closing.reason) if closing is not None else (1006, "")
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        """Send what the protocol wants to say last; reading goes on for a moment, or a reset would overtake it."""
        self.stop_keepalive()
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._linger(self._httpd.settings.linger)

    def _close(self, code: int, reason: str) -> None:
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self._say_goodbye()

    def _linger(self, seconds: float) -> None:
        if self.close_timer is not None:
            self.close_timer.cancel()
        self.close_timer = self.loop.call_later(seconds, self._cut)

    def _cut(self) -> None:
        """Close, and do not wait for a client that does not take what is still to be sent."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # What is sent.

    async def send(self, message: Any) -> None:
        if self.close_sent:  # by this protocol, while the endpoint was about to say something
            raise ClientDisconnected
        if message["type"] == "websocket.send" and self._send_soon(message.get("text")):
            return
        if message["type"] == "websocket.accept":
            self._accept()
            return
        await super().send(message)
        if message["type"] == "websocket.close" and self.close_timer is not None:
            self.stop_keepalive()
            self._linger(self.close_timeout if message.get("code") == 1000 else self._httpd.settings.linger)

    def _accept(self) -> None:
        if self.disconnected or self.transport.is_closing():
            raise ClientDisconnected
        self.handshake_complete = True
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
        """Messages that come together, and the close after them, leave in one write: system calls are what an
        answer costs most. The protocol object keeps everything in order. False: take the usual way."""
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
        self._httpd.metrics.refused("no pong")
        super().keepalive_timeout()
        self._linger(self._httpd.settings.linger)

    def shutdown(self) -> None:
        """The server is about to end: the endpoint says goodbye, with a reason; `serve` cuts what is left then."""
