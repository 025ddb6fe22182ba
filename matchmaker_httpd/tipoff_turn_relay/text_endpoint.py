"""Serves the text protocol at `POST /turn` (and `/` on the relay's own port): a bare ASGI endpoint, which is cheap.

Status 200 where the answer begins with `0/`, else 400. Cases that the original did not have get other statuses: 429 for
too many requests, 503 while NATS is away, both with `Retry-After` and an answer that means "send it again"; 403 for a
banned player, with an answer that ends its registration or game.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from tipoff_shared.admission.limits import address_key
from tipoff_shared.errors import NotAllowed, SlowDown, TipoffError
from tipoff_turn_relay.admission import TurnAdmission
from tipoff_turn_relay.messages import Error, Failed, GameQuit, GameUpdate, Register, Request
from tipoff_turn_relay.relay import TurnRelay
from tipoff_turn_relay.store import ClientGone
from tipoff_turn_relay.text import MAX_BODY, encode_answer, parse_request

log = logging.getLogger(__name__)

MAX_SKIPPED = 128 * 1024
"""Most bytes of a too long body that are read and dropped, so that its sender reads the answer."""

_TYPE = (b"content-type", b"text/plain; charset=utf-8")
_AGAIN = Failed(Error.KEEP_ALIVE_FAILED)
_REGISTER_AGAIN = Failed(Error.REGISTER_FAILED)


class _Left(Exception):
    """The client closed its connection before its request was complete."""


class TextEndpoint:
    """The ASGI endpoint: one request of the text protocol in, one answer out."""

    def __init__(self, relay: TurnRelay, admission: TurnAdmission) -> None:
        self._relay = relay
        self._admission = admission
        self.last_seconds = 0.0
        """Seconds spent on the last POST; GET answers them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. Cancelling it is safe: its client may send it again."""
        method = scope["method"]
        if method == "POST":
            began = time.perf_counter()
            try:
                await self._post(scope, receive, send)
            except (_Left, ClientGone):
                return
            finally:
                self.last_seconds = time.perf_counter() - began
        elif method in ("GET", "HEAD"):
            body = f"{self.last_seconds:.9f}".encode()
            await _respond(send, 200, body if method == "GET" else b"", [])
        else:
            await _respond(send, 405, b"POST is expected", [(b"allow", b"GET, HEAD, POST")])

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        length: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = value
                break
        if length is None or not length.isdigit() or len(length) > 18:
            await self._fail(send, Failed(Error.BAD_CONTENT_LENGTH))
            return
        size = int(length)
        if size > MAX_BODY:
            if size <= MAX_SKIPPED:
                await _skip(receive)
            await self._fail(send, Failed(Error.TOO_LONG), close=size > MAX_SKIPPED)
            return
        if not scope.get("client"):
            await self._fail(send, Failed(Error.NO_ADDRESS))
            return
        request = parse_request(await _body(receive))
        registers = isinstance(request, Register)
        again = _REGISTER_AGAIN if registers else _AGAIN
        try:
            address = self._admission.admit(scope, registers=registers)
        except NotAllowed:
            await self._fail(send, _banned(request), 403)
            return
        except SlowDown as exc:
            await self._fail(send, again, 429, retry_after=exc.retry_after)
            return
        if isinstance(request, Failed):
            await self._fail(send, request)
            return
        if isinstance(request, Register):
            request = replace(request, origin=address_key(address))
        try:
            answer = await self._relay.handle(request, abandoned=partial(_disconnected, receive))
        except TipoffError as exc:
            await self._fail(send, again, 503, retry_after=exc.retry_after or 1)
            return
        except (asyncio.CancelledError, ClientGone):
            raise
        except Exception:
            log.exception("a turn request failed")
            await self._fail(send, again, 503, retry_after=1)
            return
        if isinstance(answer, Failed):
            await self._fail(send, answer)
            return
        self._admission.answered(0)
        await _respond(send, 200, encode_answer(answer).encode(), [])

    async def _fail(
        self,
        send: Send,
        failed: Failed,
        status: int = 400,
        *,
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        self._admission.answered(failed.error)
        headers = []
        if retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(retry_after))).encode()))
        if close:
            headers.append((b"connection", b"close"))
        await _respond(send, status, encode_answer(failed).encode(), headers)


def _banned(request: Request | Failed) -> Failed:
    """What a banned player is told, in errors that clients know: there is no way in, and no way on."""
    if isinstance(request, GameUpdate | GameQuit):
        return Failed(Error.NOT_IN_GAME)
    return Failed(Error.REGISTER_FAILED if isinstance(request, Register | Failed) else Error.DROPPED)


async def _body(receive: Receive) -> bytes:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise _Left
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        body += message.get("body", b"")
    return body


async def _skip(receive: Receive) -> None:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Left
        more = message.get("more_body", False)


async def _disconnected(receive: Receive) -> bool:
    """Whether the client has closed its connection by now; does not wait for it."""
    event = asyncio.ensure_future(receive())
    await asyncio.sleep(0)
    if not event.done():
        event.cancel()
        await asyncio.wait((event,))
    return not event.cancelled() and event.result()["type"] == "http.disconnect"


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    headers = [_TYPE, (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
