"""Serves HTTP/1.1 for few and small requests: one per connection, within a deadline.

h11 parses and formats; this module owns the sockets and the limits. Whatever arrives, a connection is closed within
the deadline and holds at most a few KiB. The number of connections is limited, in total and per peer, so that one
container that opens many keeps no other from asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import h11

from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_MAX_HEAD = 8 * 1024
_MAX_BODY = 4 * 1024
_READ = 4 * 1024
_LINGER = 1.0
"""Seconds to read what a client still sends after its answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `path` is without its query; `authorization` is that header's value, a secret without a repr."""

    method: str
    path: str
    authorization: str

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, in JSON."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class SmallHttp:
    """A server from `open` to `close`. `answer` gets no request body: bodies are read and dropped.

    `deadline`: seconds from the connection to the last byte of the answer. `max_per_peer`: connections of one address,
    except loopback, which all processes of this host share.
    """

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Answer]],
        *,
        deadline: float = 5.0,
        max_connections: int = 128,
        max_per_peer: int = 16,
    ) -> None:
        self._answer = answer
        self._deadline = deadline
        self._max_connections = max_connections
        self._max_per_peer = max_per_peer
        self._open: Counter[str] = Counter()
        self._tasks = Tasks("http")
        self._server: asyncio.Server | None = None

    async def open(self, sock: socket.socket) -> None:
        """Listen on a bound socket."""
        self._server = await asyncio.start_server(self._connected, sock=sock, limit=_MAX_HEAD)

    async def close(self) -> None:
        """Stop listening and close all connections at once. Idempotent."""
        if self._server is not None:
            self._server.close()
        await self._tasks.close()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        if self._open.total() >= self._max_connections or (
            self._open[peer] >= self._max_per_peer and not peer.startswith("127.")
        ):
            writer.transport.abort()
            return
        self._open[peer] += 1
        self._tasks.start(self._serve(reader, writer, peer), "connection")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        try:
            await self._converse(reader, writer)
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
        request: Request | None = None
        try:
            async with asyncio.timeout(self._deadline):
                try:
                    request = await _head(connection, reader)
                    await _rest(connection, reader)
                    answer = await self._answer(request)
                except h11.RemoteProtocolError as exc:
                    answer = _plain(exc.error_status_hint, "the request cannot be read")
                except EOFError:
                    return
                except OSError:
                    raise
                except Exception:
                    log.exception("a request could not be answered")
                    answer = _plain(500, "the launcher failed; its log says why")
                without_body = request is not None and request.method == "HEAD"
                writer.write(_encode(connection, answer, without_body=without_body))
                writer.write_eof()
                await writer.drain()
                # Closing while the client still sends would reset the connection, and the answer would be lost.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER):
                        for _ in range(_MAX_BODY // _READ + 1):
                            if not await reader.read(_READ):
                                break
        except (OSError, TimeoutError):  # the client disconnected, or took too long
            pass


async def _head(connection: h11.Connection, reader: asyncio.StreamReader) -> Request:
    """The request without its body. Raises `h11.RemoteProtocolError`, `EOFError`, `OSError`."""
    event = await _next(connection, reader)
    if not isinstance(event, h11.Request):
        raise EOFError
    headers = {name: value for name, value in event.headers if name == b"authorization"}
    return Request(
        event.method.decode("ascii", "replace"),
        event.target.decode("ascii", "replace").partition("?")[0],
        headers.get(b"authorization", b"").decode("latin-1"),
    )


async def _rest(connection: h11.Connection, reader: asyncio.StreamReader) -> None:
    """Read the body to its end and drop it. Raises as `_head`."""
    if connection.they_are_waiting_for_100_continue:
        raise h11.RemoteProtocolError("no body is expected", error_status_hint=417)
    body = 0
    while not isinstance(event := await _next(connection, reader), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            raise EOFError
        body += len(event.data)
        if body > _MAX_BODY:
            raise h11.RemoteProtocolError("the body is too large", error_status_hint=413)


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := connection.next_event()) is h11.NEED_DATA:
        data = await reader.read(_READ)
        if not data and connection.their_state is h11.IDLE:
            raise EOFError
        connection.receive_data(data)
    return event


def _encode(connection: h11.Connection, answer: Answer, *, without_body: bool) -> bytes:
    headers = [
        ("content-type", "application/json"),
        ("content-length", str(len(answer.body))),
        ("cache-control", "no-store"),
        ("connection", "close"),
        *answer.headers,
    ]
    events: list[h11.Event] = [h11.Response(status_code=answer.status, headers=headers)]
    if not without_body:
        events.append(h11.Data(data=answer.body))
    return b"".join(connection.send(event) or b"" for event in (*events, h11.EndOfMessage()))


def _plain(status: int, message: str) -> Answer:
    return Answer(status, f'{{"message": "{message}"}}'.encode())
