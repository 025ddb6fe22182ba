"""Asks a matchmaker for a seat: `SeatRequest` decides, `request_seat` does the I/O.

The client makes the request id, and repeats it when the WebSocket breaks before the answer, or stays silent (a process
that is stopped keeps its sockets open): the matchmaker then finds the request it already has, so a player never takes
two seats.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import ssl as tls
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode

from tipoff_client_sdk.errors import ConnectionFailed
from tipoff_client_sdk.transports.websocket import open_websocket
from tipoff_shared.errors import (
    BY_CODE,
    Malformed,
    NoServerInTime,
    SlowDown,
    TipoffError,
    Unavailable,
    from_code,
)
from tipoff_shared.messages import (
    Acknowledged,
    Failed,
    PlayRequest,
    ProgressReport,
    SessionReady,
    SessionRequestAccepted,
    decode_feedback,
    encode_request,
)
from tipoff_shared.primitives.retry import backoff
from tipoff_shared.primitives.text import describe

PATH = "/matchmaker/ws"
MAX_ATTEMPTS = 8
UNREACHED_ATTEMPTS = 3
"""Of those, how many may fail before the request was sent."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 3.2
"""Seconds between two attempts; they double."""
OPEN_WITHIN = 4.0
"""Seconds for a connection and the handshake."""
FIRST_ANSWER = 3.0
"""Seconds until `Acknowledged` at the first attempt; twice as many at each further one, up to `LONGEST_FIRST_ANSWER`:
httpd says within ten seconds that no matchmaker answers."""
LONGEST_FIRST_ANSWER = 12.0
SILENCE = 8.0
"""Seconds between two messages to a player who waits; a live matchmaker sends one every two."""
PING = 2.0
"""Seconds between two pings, and for the answer to one."""
_CLOSE = 1.0
"""Seconds for the close that follows an error."""
_RETRY_AFTER = re.compile(r"retry after (\d{1,4}) s")
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

log = logging.getLogger(__name__)


class Stage(StrEnum):
    """The stages of one request, in order; `WAITING` and `DIALLING` may come several times. `DROPPED` and `RESUMED`
    come afterwards, as often as the connection is lost and found again."""

    ASKING = "asking"
    ACKNOWLEDGED = "acknowledged"
    ACCEPTED = "accepted"
    WAITING = "waiting"
    READY = "ready"
    DIALLING = "dialling"
    CONNECTED = "connected"
    DROPPED = "dropped"
    RESUMED = "resumed"


@dataclass(frozen=True, slots=True)
class Progress:
    """One step of a request that waits. `text` is for people; `session_id` is known from `ACCEPTED` on."""

    stage: Stage
    text: str
    session_id: str = ""

    def __str__(self) -> str:
        return self.text


ProgressCallback: TypeAlias = Callable[[Progress], None]
"""Called from the event loop: do not block in it."""


def matchmaker_url(url: str) -> str:
    """The matchmaker's WebSocket URL, from http, https, ws or wss, with or without the path. Raises `Malformed`."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as exc:
        raise Malformed(f"url {url!r}: {exc}") from exc
    scheme = _SCHEMES.get(parts.scheme.lower())
    if scheme is None or not parts.hostname or port == 0:
        raise Malformed(f"url {url!r}: write http://HOST:PORT, or https://HOST, of the matchmaker")
    path = parts.path.rstrip("/")
    if not path.endswith(PATH):
        path += PATH
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def first_answer_within(attempt: int) -> float:
    """Seconds to wait for the first message at attempt 1, 2, ..."""
    return float(min(FIRST_ANSWER * 2 ** (attempt - 1), LONGEST_FIRST_ANSWER))


class SeatRequest:
    """What one request was answered so far, over any number of sockets. Pure: messages in, progress out."""

    def __init__(self) -> None:
        self.ready: SessionReady | None = None
        self.session_id = ""
        self._acknowledged = False

    def receive(self, message: str | bytes) -> Progress | None:
        """Take in one message; returns the progress to report, or None for what is known already.

        Raises the typed error that the matchmaker sent, or `Malformed` for anything else.
        """
        feedback = decode_feedback(message)
        match feedback:
            case Acknowledged():
                if self._acknowledged:
                    return None
                self._acknowledged = True
                return Progress(Stage.ACKNOWLEDGED, "a matchmaker has the request")
            case SessionRequestAccepted(session_id):
                known, self.session_id = self.session_id == session_id, session_id
                return None if known else Progress(Stage.ACCEPTED, "session opened", session_id)
            case ProgressReport(text):
                return Progress(Stage.WAITING, text, self.session_id)
            case Failed():
                raise feedback.error()
            case SessionReady():
                self.ready = feedback
                self.session_id = feedback.session_id or self.session_id
                return Progress(Stage.READY, "a seat is yours", self.session_id)


class _Broken(Exception):
    """The socket ended before the answer; never leaves this module. `sent`: the request may have arrived; `late`:
    nothing refused it, it took too long."""

    def __init__(self, reason: str, *, sent: bool, late: bool = False) -> None:
        super().__init__(reason)
        self.sent = sent
        self.late = late


async def request_seat(
    url: str,
    request: PlayRequest,
    *,
    progress: ProgressCallback,
    timeout: float,
    ssl: tls.SSLContext | None = None,
) -> SessionReady:
    """Ask the matchmaker at `url` (see `matchmaker_url`) for a seat, for at most `timeout` seconds.

    Raises what the matchmaker answers, `NoServerInTime` at the deadline, `ConnectionFailed` when it cannot be
    reached or breaks off again and again. Cancelling is safe: a seat given meanwhile is unclaimed, and freed.
    """
    try:
        async with asyncio.timeout(timeout):
            return await _request_until_answered(url, request, progress, ssl)
    except TimeoutError:
        raise NoServerInTime(f"no server became ready within {timeout:g} s; try again") from None


async def _request_until_answered(
    url: str, request: PlayRequest, progress: ProgressCallback, ssl: tls.SSLContext | None
) -> SessionReady:
    state = SeatRequest()
    sent = False
    attempt = 0
    while True:
        try:
            return await _request_once(url, request, state, progress, ssl, first_answer_within(attempt + 1))
        except _Broken as exc:
            sent = sent or exc.sent
            attempt += 1
            if not sent and not (exc.late and attempt < UNREACHED_ATTEMPTS):
                raise ConnectionFailed(
                    f"no matchmaker at {url}: {exc}; is it running, and is the address right?"
                ) from exc.__cause__
            if attempt >= MAX_ATTEMPTS:
                raise ConnectionFailed(
                    f"the connection to the matchmaker at {url} broke {attempt} times: {exc}"
                ) from exc
            log.info("the matchmaker's socket broke (%s); asking again with the same request id", exc)
            progress(Progress(Stage.WAITING, "the connection broke, asking again", state.session_id))
            await asyncio.sleep(backoff(attempt, FIRST_PAUSE, longest=LONGEST_PAUSE))


async def _request_once(
    url: str,
    request: PlayRequest,
    state: SeatRequest,
    progress: ProgressCallback,
    ssl: tls.SSLContext | None,
    first_answer: float,
) -> SessionReady:
    """One attempt over one socket. Raises `_Broken` when another attempt may help."""
    sent = False
    try:
        async with open_websocket(
            url,
            ssl,
            proxy=None if _is_this_machine(url) else True,  # the system's proxy, as a browser would
            open_timeout=OPEN_WITHIN,
            ping_interval=PING,
            ping_timeout=PING,
            max_size=65536,
        ) as socket:
            sent = True
            await socket.send(encode_request(request).decode())
            timeout = first_answer
            while state.ready is None:
                message = await _next_message(socket, timeout)
                timeout = SILENCE
                try:
                    step = state.receive(message)
                except (Unavailable, SlowDown) as exc:
                    raise await _with_close(socket, exc) from None
                if step is not None:
                    progress(step)
            return state.ready
    except InvalidStatus as exc:
        raise _from_status(url, exc) from exc
    except InvalidURI as exc:
        raise Malformed(f"url {url!r}: {exc}") from exc
    except ConnectionClosed as exc:
        raise _Broken(str(exc), sent=sent) from exc
    except (OSError, InvalidHandshake) as exc:
        raise _Broken(describe(exc), sent=sent, late=isinstance(exc, TimeoutError)) from exc


async def _next_message(socket: ClientConnection, timeout: float) -> str | bytes:
    """The next message; raises `_Broken` when none comes within `timeout` seconds."""
    try:
        async with asyncio.timeout(timeout):
            return await socket.recv()
    except TimeoutError:
        # A silent peer would not answer a close frame. `transport` is no documented part of websockets (written
        # against 17.4, pinned below 18).
        socket.transport.abort()
        raise _Broken(f"silent for {timeout:g} s", sent=True, late=True) from None


async def _with_close(socket: ClientConnection, error: TipoffError) -> Exception:
    """The error, with what the following close adds: that another process takes over, or when to ask again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE):
            await socket.wait_closed()
    if socket.close_code == CloseCode.SERVICE_RESTART:
        return _Broken(error.message, sent=True)
    if error.retry_after is None and (when := _RETRY_AFTER.search(socket.close_reason or "")):
        error.retry_after = float(when[1])
    return error


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _from_status(url: str, exc: InvalidStatus) -> TipoffError:
    """An HTTP answer in place of a WebSocket, as a typed error."""
    status = exc.response.status_code
    after = exc.response.headers.get("Retry-After", "")
    retry_after = float(after) if after.isdigit() else None
    text = bytes(exc.response.body or b"")[:200].decode(errors="replace").strip()
    if status == 404:
        return ConnectionFailed(f"there is no matchmaker at {url} (HTTP 404); is the path right?")
    if status in BY_CODE:
        return from_code(
            status, text or f"the matchmaker at {url} answered HTTP {status}", retry_after=retry_after
        )
    return Unavailable(f"{url} answered HTTP {status}", retry_after=retry_after)
