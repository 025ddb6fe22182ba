"""`GET /matchmaker/ws`: a player asks with one message and then listens. A bare ASGI endpoint, for its price.

Every way out sends something a client can read: feedback and close code 1000; `{"Error": [code, reason]}` and 1008 for
a request that cannot be understood, a second message or silence; 1011 for a mistake of ours; 1012 when the process
ends; 1013 when there is no room. Before the handshake is accepted only HTTP can answer: 403 for a foreign page.
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
from uvicorn.protocols.utils import ClientDisconnected

from tipoff_matchmaker_httpd.matchmaker.feedback import Call
from tipoff_matchmaker_httpd.state import Httpd, header, traceparent
from tipoff_shared.admission.client_address import Address, player_address, scope_address
from tipoff_shared.errors import Internal, Malformed, NoServerInTime, NotAllowed, TipoffError, Unavailable
from tipoff_shared.messages import MAX_MESSAGE, Failed, PlayRequest, decode_request, encode_feedback

log = logging.getLogger(__name__)

PATH = "/matchmaker/ws"

NORMAL, POLICY, UNEXPECTED, RESTART, TRY_LATER = 1000, 1008, 1011, 1012, 1013
PLAYER_LEFT = 499
"""As metrics count it; nobody is told."""
_ACCEPT = {"type": "websocket.accept"}


class _Ended(Exception):
    """The conversation ends with this error and this close code."""

    def __init__(self, error: TipoffError, close: int) -> None:
        self.error = error
        self.close = close


class _Left(Exception):
    """The player went away."""


class PlayerSocket:
    """The ASGI endpoint of all WebSockets."""

    def __init__(self, httpd: Httpd) -> None:
        self._httpd = httpd

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One player, from the handshake to the close. Cancelling it is safe and leaves nothing behind."""
        headers = scope["headers"]
        if scope["path"] != PATH:
            await refuse(send, 404, Failed(404, f"WebSockets are at {PATH}"))
            return
        secure = scope["scheme"] == "wss"
        if not self._httpd.origins.allows(header(headers, b"origin"), header(headers, b"host"), secure):
            self._httpd.metrics.refused("origin")
            error = NotAllowed(
                "pages of this origin may not ask here; TIPOFF_HTTPD_ORIGINS lists those that may"
            )
            await refuse(send, error.code, Failed(error.code, error.message))
            return
        address = scope_address(scope, self._httpd.addresses)
        try:
            await self._converse(scope, receive, send, address)
        except ClientDisconnected:
            return
        except Exception:
            log.exception("a conversation with a player failed")
            with suppress(ClientDisconnected):
                await end(send, Internal("something went wrong here; the log says what"), UNEXPECTED)

    async def _converse(self, scope: Scope, receive: Receive, send: Send, address: Address) -> None:
        began = time.monotonic()
        await receive()  # websocket.connect
        await send(_ACCEPT)
        code = 200
        try:
            place = self._httpd.admit(address)
        except TipoffError as exc:
            self._httpd.metrics.finished("websocket", exc.code, 0)
            await end(send, exc, TRY_LATER)
            return
        try:
            await self._serve(scope, receive, send, address)
        except _Ended as ended:
            code = ended.error.code
            await end(send, ended.error, ended.close)
        except (_Left, ClientDisconnected):
            code = PLAYER_LEFT
        except TipoffError as exc:  # sent already, as the last message of the call
            code = exc.code
            close = RESTART if isinstance(exc, Unavailable) and self._httpd.draining.is_set() else NORMAL
            await send({"type": "websocket.close", "code": close, "reason": _when(exc)})
        else:
            await send({"type": "websocket.close", "code": NORMAL})
        finally:
            self._httpd.limits.leave(place)
            self._httpd.metrics.finished("websocket", code, time.monotonic() - began)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, address: Address) -> None:
        request = await self._first_message(receive)
        claimed = request.client_ip
        if claimed is None and self._httpd.addresses.allow_client_ip and scope["query_string"]:
            claimed = parse_qs(scope["query_string"].decode("latin-1")).get("client_ip", [None])[0]
        try:
            call = self._httpd.call(
                request,
                player_address(address, claimed, self._httpd.addresses),
                traceparent(scope["headers"]),
            )
        except Malformed as exc:
            raise _Ended(exc, POLICY) from exc
        except Unavailable as exc:
            raise _Ended(exc, RESTART) from exc
        await self._forward(call, receive, send)

    async def _first_message(self, receive: Receive) -> PlayRequest:
        try:
            async with asyncio.timeout(self._httpd.settings.first_message_timeout) as wait:
                if self._httpd.draining.is_set():
                    wait.reschedule(0)
                self._httpd.first_messages.add(wait)
                try:
                    event = await receive()
                finally:
                    self._httpd.first_messages.discard(wait)
        except TimeoutError as exc:
            if self._httpd.draining.is_set():
                raise _Ended(Unavailable("this server is going away; ask again"), RESTART) from exc
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

    async def _forward(self, call: Call, receive: Receive, send: Send) -> None:
        """Feedback to the player until the call ends; raises what it failed with. Whatever the player sends
        meanwhile ends it."""
        listener = asyncio.get_running_loop().create_task(_next_event(receive))
        listener.add_done_callback(lambda _: call.close())
        try:
            await call.ask()
            async for message in call:
                await send({"type": "websocket.send", "text": message.decode()})
        finally:
            call.close()
            listener.cancel()
        if not call.ready and call.failure is None:  # closed by what the player did
            event = await listener
            if event["type"] == "websocket.receive":
                raise _Ended(Malformed("one request for each connection, please"), POLICY)
            raise _Left
        if call.failure is not None:
            raise call.failure


async def _next_event(receive: Receive) -> dict[str, Any]:
    return dict(await receive())


async def refuse(send: Send, status: int, failed: Failed) -> None:
    """An HTTP answer instead of the handshake."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": encode_feedback(failed)})


async def end(send: Send, error: TipoffError, close: int) -> None:
    text = encode_feedback(Failed(error.code, error.message)).decode()
    await send({"type": "websocket.send", "text": text})
    when = _when(error)
    said = error.message.encode()[: 118 - len(when)].decode(errors="ignore")
    await send({"type": "websocket.close", "code": close, "reason": f"{said}; {when}" if when else said})


def _when(error: TipoffError) -> str:
    """A WebSocket's Retry-After: in the close reason, because bevygap's clients read nothing more in an `Error`."""
    return f"retry after {max(1, round(error.retry_after))} s" if error.retry_after else ""


def parse_request(text: str) -> PlayRequest:
    """A player's request from hostile text: raises `Malformed` and nothing else.

    What readers of JSON disagree about (a key that stands twice, NaN) is refused, so that whoever checks a request
    and whoever acts on it see the same one.
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
        raise ValueError("a key stands in it twice")
