"""Serves `/matchmaker/ws`: a player sends one message, then reads feedback until the close.

It is a bare ASGI endpoint, because it runs once for each play. Every way out sends something that a client can read:

    1000  the answer, `SessionReady` or an `Error` of the matchmakers
    1008  `{"Error": [code, reason]}`: not a request, a second message, silence, no valid login, or a ban
    1011  the same: an internal error
    1012  the same: the process is stopping
    1013  the same: there is no room

Before the handshake is accepted only HTTP can answer: 403 for a page of a foreign origin.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

# uvicorn 0.54 (<0.55): the exception that its `send` raises when the client has gone.
from uvicorn.protocols.utils import ClientDisconnected

from tipoff_matchmaker_httpd.matchmaker.client import PendingRequest
from tipoff_matchmaker_httpd.state import HttpdState, header
from tipoff_shared.admission.answers import error_body, retry_after
from tipoff_shared.admission.client_address import Address, player_address, scope_address
from tipoff_shared.errors import (
    Internal,
    Malformed,
    NoServerInTime,
    NotAllowed,
    NotAuthenticated,
    SlowDown,
    TipoffError,
    Unavailable,
)
from tipoff_shared.messages import MAX_MESSAGE, Failed, PlayRequest, decode_request, encode_feedback
from tipoff_shared.primitives.text import one_line

log = logging.getLogger(__name__)

PATH = "/matchmaker/ws"

NORMAL, POLICY, UNEXPECTED, RESTART, TRY_LATER = 1000, 1008, 1011, 1012, 1013
PLAYER_LEFT = 499
"""The code that metrics count for a player who left; no client sees it."""
_MAX_REASON = 118
"""Bytes of a close reason, of the 123 that RFC 6455 §5.5 leaves."""
_ACCEPT = {"type": "websocket.accept"}


class _Ended(Exception):
    """The conversation ends with this error and this close code."""

    def __init__(self, error: TipoffError, close: int) -> None:
        super().__init__(error)
        self.error = error
        self.close = close


class _Left(Exception):
    """The player has disconnected."""


class PlayerSocket:
    """The ASGI endpoint of all WebSockets."""

    def __init__(self, state: HttpdState) -> None:
        self._state = state
        self._first_messages: set[asyncio.Timeout] = set()
        """The waits for a first message."""
        state.on_drain(self._end_first_messages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one player, from the handshake to the close. Cancelling is safe and leaves nothing behind."""
        headers = scope["headers"]
        if scope["path"] != PATH:
            await self._refuse(scope, send, Failed(404, f"WebSockets are at {PATH}"), scope["path"])
            return
        secure = scope["scheme"] == "wss"
        if not self._state.origins.allows(header(headers, b"origin"), header(headers, b"host"), secure):
            self._state.metrics.refused("origin")
            text = "pages of this origin may not ask here; TIPOFF_HTTPD_ORIGINS lists those that may"
            await self._refuse(scope, send, Failed(NotAllowed.code, text), header(headers, b"origin"))
            return
        address = scope_address(scope, self._state.addresses)
        try:
            await self._converse(scope, receive, send, address)
        except ClientDisconnected:
            return
        except Exception:
            log.exception("a conversation with a player failed")
            with suppress(ClientDisconnected):
                await _end(send, Internal("something went wrong here; the log says what"), UNEXPECTED)

    async def _refuse(self, scope: Scope, send: Send, failed: Failed, what: str | None) -> None:
        """An HTTP answer instead of the handshake. `what`: the path or origin that is refused."""
        client = scope.get("client")
        self._state.log.warning(
            f"handshake {failed.code}",
            "refused a WebSocket handshake of %s with %d: %s: %s",
            client[0] if client else "a client",
            failed.code,
            "no Origin" if what is None else one_line(repr(what), 120),
            failed.message,
        )
        headers = [(b"content-type", b"application/json")]
        await send({"type": "websocket.http.response.start", "status": failed.code, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": encode_feedback(failed)})

    async def _converse(self, scope: Scope, receive: Receive, send: Send, address: Address) -> None:
        began = time.monotonic()
        await receive()  # websocket.connect
        await send(_ACCEPT)
        code = 200
        try:
            place = self._state.admit(address)
        except TipoffError as exc:
            self._state.metrics.finished("websocket", exc.code, 0)
            await _end(send, exc, POLICY if isinstance(exc, NotAllowed) else TRY_LATER)
            return
        try:
            await self._serve(scope, receive, send, address)
        except _Ended as ended:
            code = ended.error.code
            await _end(send, ended.error, ended.close)
        except (_Left, ClientDisconnected):
            code = PLAYER_LEFT
        except TipoffError as exc:  # sent already, as the last message of the request
            code = exc.code
            restart = isinstance(exc, Unavailable) and self._state.draining.is_set()
            close = RESTART if restart else NORMAL
            await send({"type": "websocket.close", "code": close, "reason": _when(exc)})
        else:
            await send({"type": "websocket.close", "code": NORMAL})
        finally:
            self._state.limits.leave(place)
            self._state.metrics.finished("websocket", code, time.monotonic() - began)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, address: Address) -> None:
        play = await self._first_message(receive)
        addresses = self._state.addresses
        claimed = play.client_ip
        if claimed is None and addresses.allow_client_ip and scope["query_string"]:
            claimed = parse_qs(scope["query_string"].decode("latin-1")).get("client_ip", [None])[0]
        try:
            resolved = player_address(address, claimed, addresses)
            request = await self._state.request(play, address, resolved, scope["headers"])
        except (Malformed, NotAuthenticated, NotAllowed) as exc:
            raise _Ended(exc, POLICY) from exc
        except (Unavailable, SlowDown) as exc:
            raise _Ended(exc, RESTART if self._state.draining.is_set() else TRY_LATER) from exc
        await _forward(request, receive, send)

    async def _first_message(self, receive: Receive) -> PlayRequest:
        try:
            async with asyncio.timeout(self._state.settings.first_message_timeout) as wait:
                if self._state.draining.is_set():
                    wait.reschedule(0)
                self._first_messages.add(wait)
                try:
                    event = await receive()
                finally:
                    self._first_messages.discard(wait)
        except TimeoutError as exc:
            if self._state.draining.is_set():
                raise _Ended(Unavailable("this server is stopping; ask again"), RESTART) from exc
            raise _Ended(NoServerInTime("no request came in time"), POLICY) from exc
        if event["type"] != "websocket.receive":
            raise _Left
        text = event.get("text")
        try:
            if text is None:
                raise Malformed("a request is one text message with JSON, not a binary one")
            return parse_request(text)
        except Malformed as exc:
            raise _Ended(exc, POLICY) from exc

    def _end_first_messages(self) -> None:
        now = asyncio.get_running_loop().time()
        for wait in self._first_messages:
            wait.reschedule(now)


async def _forward(request: PendingRequest, receive: Receive, send: Send) -> None:
    """Pass feedback on to the player until the request ends; raises what it failed with. Anything that the player
    sends meanwhile ends it."""
    listener = asyncio.get_running_loop().create_task(_next_event(receive))
    listener.add_done_callback(lambda _: request.close())
    try:
        await request.ask()
        async for message in request:
            await send({"type": "websocket.send", "text": message.decode()})
    finally:
        request.close()
        listener.cancel()
    if request.failure is not None:
        raise request.failure
    if not request.ready:  # closed by what the player did
        event = await listener
        if event["type"] == "websocket.receive":
            raise _Ended(Malformed("one request for each connection, please"), POLICY)
        raise _Left


async def _next_event(receive: Receive) -> dict[str, Any]:
    return dict(await receive())


async def _end(send: Send, error: TipoffError, close: int) -> None:
    """The error as a message, then the close with its reason."""
    await send({"type": "websocket.send", "text": error_body(error).decode()})
    when = _when(error)
    said = error.message.encode()[: _MAX_REASON - len(when)].decode(errors="ignore")
    await send({"type": "websocket.close", "code": close, "reason": f"{said}; {when}" if when else said})


def _when(error: TipoffError) -> str:
    """A WebSocket's Retry-After, in the close reason: bevygap's clients read nothing more in an `Error`."""
    seconds = retry_after(error)
    return "" if seconds is None else f"retry after {seconds} s"


def parse_request(text: str) -> PlayRequest:
    """A player's request from hostile text. Raises only `Malformed`.

    It refuses JSON that readers disagree about (a key that occurs twice, NaN), so that every later reader of a request
    sees the same one.
    """
    if len(text) > MAX_MESSAGE:
        raise Malformed(f"a request is at most {MAX_MESSAGE} bytes")
    request = decode_request(text)
    if text.count(":") > 2:  # more than game and version
        try:
            json.loads(text, object_pairs_hook=_unique_keys, parse_int=str, parse_float=str)
        except (ValueError, RecursionError) as exc:
            raise Malformed(f"not a request: {exc}") from exc
    return request


def _unique_keys(pairs: list[tuple[str, Any]]) -> None:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key occurs twice")
