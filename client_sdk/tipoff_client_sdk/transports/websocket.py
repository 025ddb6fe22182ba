"""Connects to a game server over a WebSocket: the token first, the server's answer, then one binary message each.

TLS (wss) protects it; without, it is for loopback and the local network.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl as tls
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from tipoff_client_sdk.errors import Closed, ConnectionFailed, Refused, ServerLost
from tipoff_client_sdk.inbox import Ending, Inbox, Line
from tipoff_shared.errors import Malformed
from tipoff_shared.framing import MAX_MESSAGE_BYTES
from tipoff_shared.messages import Admitted, Failed, decode_admission
from tipoff_shared.primitives.text import describe
from tipoff_shared.primitives.waiting import cancel_all

PING_EVERY = 2.0
PONG_WITHIN = 10.0

log = logging.getLogger(__name__)
_frames_log = logging.getLogger("tipoff_client_sdk.frames")
_frames_log.setLevel(logging.INFO)  # the websockets library writes frames at DEBUG, and they hold tokens


def open_websocket(url: str, ssl: tls.SSLContext | None, **options: Any) -> connect:
    """A WebSocket to `url`, to be awaited or entered; `ssl` is for wss only. No frame of it reaches a log.

    Opening it raises what `websockets.connect` raises.
    """
    if ssl is not None and url.startswith("wss:"):
        options["ssl"] = ssl
    return connect(url, compression=None, close_timeout=1, logger=_frames_log, **options)


async def dial_websocket(
    url: str, token: bytes, inbox: Inbox | Line, *, timeout: float, ssl: tls.SSLContext | None = None
) -> WebSocketChannel:
    """Connect to `url` and show the 2048 bytes of `token`, within `timeout` seconds.

    Raises `ConnectionFailed` or `Refused`.
    """
    _warn_of_plain_text(url)
    loop = asyncio.get_running_loop()
    socket: ClientConnection | None = None
    try:
        async with asyncio.timeout(timeout):
            socket = await open_websocket(
                _asking(url),
                ssl,
                proxy=None,
                open_timeout=None,
                ping_interval=PING_EVERY,
                ping_timeout=PONG_WITHIN,
                max_size=MAX_MESSAGE_BYTES,
                max_queue=64,
            )
            sent_at = loop.time()
            await socket.send(token)
            answer = decode_admission(await socket.recv())
            if isinstance(answer, Failed):
                raise Refused(f"the server at {url} refused: {answer.message}", server_code=answer.code)
            return WebSocketChannel(url, socket, inbox, answer, loop.time() - sent_at)
    except TimeoutError:
        failure: Exception = ConnectionFailed(f"websocket {url}: no answer within {timeout:.1f} s")
    except Malformed as exc:
        failure = ConnectionFailed(f"websocket {url}: {exc}")
    except ConnectionClosed as exc:
        failure = ConnectionFailed(f"websocket {url}: closed before the answer to the token ({exc})")
    except (OSError, InvalidHandshake, InvalidURI) as exc:
        closed = isinstance(exc, ConnectionRefusedError)
        failure = ConnectionFailed(f"websocket {url}: {describe(exc)}", closed=closed)
    except BaseException:
        await _drop(socket)
        raise
    await _drop(socket)
    raise failure


async def _drop(socket: ClientConnection | None) -> None:
    if socket is not None:
        await socket.close()


class WebSocketChannel:
    """An admitted connection. Its task moves messages to the inbox until `close` or the end."""

    transport = "websocket"
    reliable = True

    def __init__(
        self, url: str, socket: ClientConnection, inbox: Inbox | Line, admitted: Admitted, first_rtt: float
    ) -> None:
        self._url = url
        self._socket = socket
        self._inbox = inbox
        self._client_index = admitted.client_index
        self.max_message = min(admitted.max_message, MAX_MESSAGE_BYTES)
        """Bytes of the longest message that the server takes."""
        self._first_rtt = first_rtt
        self._reader = asyncio.create_task(self._read(), name="tipoff/websocket reader")

    @property
    def server(self) -> str:
        """The URL of the game server."""
        return self._url

    @property
    def rtt(self) -> float | None:
        """The library's last ping; before the first one the time the admission took."""
        return self._socket.latency or self._first_rtt

    @property
    def client_index(self) -> int | None:
        """The server's number for this connection."""
        return self._client_index

    async def send(self, message: bytes, reliable: bool = True) -> None:
        """Waits while 32 KiB are unsent. Raises `Closed` or `ServerLost`."""
        try:
            await self._socket.send(message)
        except ConnectionClosed as exc:
            ending = _ending(exc)
            self._inbox.end(ending)
            closed = Closed(ending.reason, close_code=ending.code, reason=ending.reason)
            raise (ending.error or closed) from exc

    async def close(self) -> None:
        """Send a close frame, wait at most a second for the answer, then end the reader; idempotent."""
        await self._socket.close()
        await cancel_all([self._reader], timeout=1)

    async def abandon(self) -> None:
        """Cut a lost connection, and end the reader; idempotent."""
        self._socket.transport.abort()  # undocumented, see matchmaking.py
        await cancel_all([self._reader], timeout=1)

    async def _read(self) -> None:
        try:
            while True:
                message = await self._socket.recv()
                if isinstance(message, str):
                    continue  # text belongs to the transport, and admission is over
                await self._inbox.room()
                self._inbox.put(message)
        except ConnectionClosed as exc:
            self._inbox.end(_ending(exc))


def _ending(exc: ConnectionClosed) -> Ending:
    """How the connection ended, from its close frames."""
    if exc.rcvd is not None:
        return Ending.closed(exc.rcvd.code, exc.rcvd.reason)
    reason = "the connection to the server broke"
    if exc.sent is not None and exc.sent.reason:
        reason = f"the server does not respond ({exc.sent.reason})"
    return Ending(reason, ServerLost(reason))


def _asking(url: str) -> str:
    """`url`, asking for long messages; a server that does not know them ignores it."""
    parts = urlsplit(url)
    query = f"{parts.query}&" if parts.query else ""
    return urlunsplit(parts._replace(query=f"{query}max_message={MAX_MESSAGE_BYTES}", path=parts.path or "/"))


def _warn_of_plain_text(url: str) -> None:
    parts = urlsplit(url)
    try:
        public = ipaddress.ip_address(parts.hostname or "").is_global
    except ValueError:
        public = False
    if parts.scheme == "ws" and public:
        log.warning("%s is not encrypted: anybody on the way can take over this player's token", url)
