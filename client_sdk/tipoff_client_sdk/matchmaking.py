"""Asking a matchmaker for a seat: `SeatRequest` decides, `request_seat` does the I/O.

The request id is made here, and the same one is asked again when the WebSocket breaks before the answer, or says
nothing (a process that is stopped keeps its sockets open): the matchmaker then finds the request it already has, so a
player never takes two seats.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import re
import ssl as tls
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode

from tipoff_client_sdk.errors import ConnectionFailed
from tipoff_client_sdk.frames_log import frames_log
from tipoff_client_sdk.progress import Progress, ProgressCallback, Stage
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

PATH = "/matchmaker/ws"
MAX_ATTEMPTS = 8
UNREACHED_ATTEMPTS = 3
"""Of those, how many may end before anybody was asked."""
OPEN_WITHIN = 4.0
"""Seconds for a connection and the handshake."""
FIRST_WORD = 3.0
"""Seconds until `Acknowledged` at the first attempt; twice as many at each further one, up to `LONGEST_WORD`: one that
lives says within ten that no matchmaker answers."""
LONGEST_WORD = 12.0
SILENCE = 8.0
"""Seconds between two words to a player who waits; he is told something every two."""
PING = 2.0
"""Seconds between two pings, and for the answer to one."""
_GOODBYE = 1.0
_RETRY_AFTER = re.compile(r"retry after (\d{1,4}) s")
_SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}

log = logging.getLogger(__name__)


def matchmaker_url(url: str) -> str:
    """The WebSocket URL for what people write: http, https, ws or wss, with or without the path.

    Raises `Malformed`.
    """
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


def first_word_within(attempt: int) -> float:
    """Seconds to wait for the first word at attempt 1, 2, ..."""
    return float(min(FIRST_WORD * 2 ** (attempt - 1), LONGEST_WORD))


def back_off(attempt: int, jitter: float) -> float:
    """Seconds before attempt 1, 2, ...: up to 0.1, 0.2, 0.4 ... 3.2; `jitter` is 0 to 1 and takes up to half away."""
    return float(min(0.1 * 2 ** (attempt - 1), 3.2) * (1 - jitter / 2))


class SeatRequest:
    """What one request has been told so far, over however many sockets. Pure: messages in, progress out."""

    def __init__(self) -> None:
        self.ready: SessionReady | None = None
        self.session_id = ""
        self._acknowledged = False

    def receive(self, message: str | bytes) -> Progress | None:
        """Take in one message; the progress worth telling, or None for what is known already.

        Raises the typed error that the matchmaker sent, or `Malformed` for anything that is no message of its.
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
    """The socket ended before the answer. `asked`: the request may have arrived; `late`: nobody said no, it only
    took too long."""

    def __init__(self, reason: str, *, asked: bool, late: bool = False) -> None:
        super().__init__(reason)
        self.asked = asked
        self.late = late


async def request_seat(
    url: str,
    request: PlayRequest,
    *,
    progress: ProgressCallback,
    timeout: float,
    ssl: tls.SSLContext | None = None,
) -> SessionReady:
    """Ask the matchmaker at `url` (see `matchmaker_url`) for a seat, at most `timeout` seconds.

    Raises what the matchmaker answers, `NoServerInTime` at the deadline, `ConnectionFailed` when it cannot be
    reached or breaks off again and again. Cancelling is safe: a seat given meanwhile is taken back, unclaimed.
    """
    state = SeatRequest()
    try:
        async with asyncio.timeout(timeout):
            return await _ask_until_answered(url, request, state, progress, ssl)
    except TimeoutError:
        raise NoServerInTime(f"no server became ready within {timeout:g} s; try again") from None


async def _ask_until_answered(
    url: str, request: PlayRequest, state: SeatRequest, progress: ProgressCallback, ssl: tls.SSLContext | None
) -> SessionReady:
    asked = False
    attempt = 0
    while True:
        try:
            return await _ask_once(url, request, state, progress, ssl, first_word_within(attempt + 1))
        except _Broken as exc:
            asked = asked or exc.asked
            attempt += 1
            if not asked and not (exc.late and attempt < UNREACHED_ATTEMPTS):
                raise ConnectionFailed(
                    f"no matchmaker at {url}: {exc}; is it running, and is the address right?"
                ) from exc.__cause__
            if attempt >= MAX_ATTEMPTS:
                raise ConnectionFailed(f"the matchmaker at {url} broke off {attempt} times: {exc}") from exc
            log.info("the matchmaker's socket broke (%s); asking again with the same request id", exc)
            progress(Progress(Stage.WAITING, "the connection broke, asking again", state.session_id))
            await asyncio.sleep(back_off(attempt, random.random()))


async def _ask_once(
    url: str,
    request: PlayRequest,
    state: SeatRequest,
    progress: ProgressCallback,
    ssl: tls.SSLContext | None,
    patience: float,
) -> SessionReady:
    asked = False
    options: dict[str, Any] = {"ssl": ssl} if ssl is not None and url.startswith("wss:") else {}
    try:
        async with open_websocket(
            url,
            compression=None,
            proxy=None if _is_this_machine(url) else True,  # the system's proxy, as a browser would
            open_timeout=OPEN_WITHIN,
            close_timeout=1,
            ping_interval=PING,
            ping_timeout=PING,
            max_size=65536,
            logger=frames_log,
            **options,
        ) as socket:
            asked = True
            await socket.send(encode_request(request).decode())
            while state.ready is None:
                message = await _next_word(socket, patience)
                patience = SILENCE
                try:
                    told = state.receive(message)
                except (Unavailable, SlowDown) as exc:
                    raise await _turned_away(socket, exc) from None
                if told is not None:
                    progress(told)
            return state.ready
    except InvalidStatus as exc:
        raise _refused(url, exc) from exc
    except InvalidURI as exc:
        raise Malformed(f"url {url!r}: {exc}") from exc
    except ConnectionClosed as exc:
        raise _Broken(str(exc), asked=asked) from exc
    except (OSError, InvalidHandshake) as exc:
        late = isinstance(exc, TimeoutError)
        raise _Broken(str(exc) or type(exc).__name__, asked=asked, late=late) from exc


async def _next_word(socket: ClientConnection, within: float) -> str | bytes:
    """What comes next; raises `_Broken` when nothing does for `within` seconds."""
    try:
        async with asyncio.timeout(within):
            return await socket.recv()
    except TimeoutError:
        socket.transport.abort()  # nobody there would answer a goodbye
        raise _Broken(f"silent for {within:g} s", asked=True, late=True) from None


async def _turned_away(socket: ClientConnection, error: TipoffError) -> Exception:
    """What the close that follows the error says more: that another one takes over, or when to ask again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_GOODBYE):
            await socket.wait_closed()
    if socket.close_code == CloseCode.SERVICE_RESTART:
        return _Broken(error.message, asked=True)
    if error.retry_after is None and (when := _RETRY_AFTER.search(socket.close_reason or "")):
        error.retry_after = float(when[1])
    return error


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _refused(url: str, exc: InvalidStatus) -> TipoffError:
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
