"""Serves `POST /matchmaker/request/{game}/{version}`: the WebSocket's messages as a stream, one JSON value a line."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tipoff_matchmaker_httpd.matchmaker.client import PendingRequest
from tipoff_matchmaker_httpd.routes.play_ws import PLAYER_LEFT, parse_request
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.admission.answers import error_headers, unless_disconnected
from tipoff_shared.admission.client_address import player_address, scope_address
from tipoff_shared.errors import Malformed
from tipoff_shared.messages import PlayRequest

ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text}
    for code, text in {
        400: "The request cannot be understood",
        401: "No login, or one that is not valid: the reason begins with one word for it",
        403: "Pages of this origin may not ask here, or the player is banned: the reason says until when",
        404: "No such game or version",
        408: "No server became ready in time",
        413: "The body is over 4 KB",
        429: "Too many requests from one address; Retry-After says when to ask again",
        503: "No matchmaker, or overloaded; Retry-After says when to ask again",
    }.items()
}
"""The error answers of a request for a seat, for the API's description."""


def stream_routes(state: HttpdState) -> APIRouter:
    """The route of the stream."""
    router = APIRouter()

    @router.post(
        "/matchmaker/request/{game}/{version}",
        summary="Ask for a seat; the answer is a stream",
        description="The messages of the WebSocket, one JSON value a line: `Acknowledged`, "
        "`SessionRequestAccepted`, `ProgressReport`, and last `SessionReady` or `Error`. An error that comes before "
        "anything else is the status of the response as well. The body may hold the other members of a request "
        "(`client_ip`, `request_id`, `auth`, `name`) as a JSON object; a login token may come as "
        "`Authorization: Bearer` instead.",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {}}}, **ERRORS},
    )
    async def request(
        game: str, version: str, http: Request, client_ip: str | None = Query(None)
    ) -> Response:
        return await _stream(state, http, await read_request(http, game, version, client_ip))

    return router


async def read_request(http: Request, game: str, version: str, client_ip: str | None) -> PlayRequest:
    """The request in path, query and body; raises `Malformed`. The protocol bounds the body at 4 KB."""
    body = await http.body()
    members: dict[str, Any] = {}
    if body.strip():
        try:
            members = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise Malformed(f"the body is not a JSON object: {exc}") from exc
    members |= {"game": game, "version": version}
    if members.get("client_ip") is None:
        members["client_ip"] = client_ip
    try:
        return parse_request(json.dumps(members))
    except (RecursionError, ValueError) as exc:
        raise Malformed(f"the body cannot be read: {exc}") from exc


async def begin_request(state: HttpdState, http: Request, play: PlayRequest) -> tuple[PendingRequest, str]:
    """A request that is not asked yet, and the place it takes: close the one, leave the other.

    Raises what `HttpdState.admit` and `HttpdState.request` raise. Cancelling is safe.
    """
    address = scope_address(http.scope, state.addresses)
    resolved = player_address(address, play.client_ip, state.addresses)
    place = state.admit(address)
    try:
        return await state.request(play, address, resolved, http.scope["headers"]), place
    except BaseException:
        state.limits.leave(place)
        raise


async def _stream(state: HttpdState, http: Request, play: PlayRequest) -> Response:
    began = time.monotonic()
    request, place = await begin_request(state, http, play)

    def over(code: int) -> None:
        request.close()
        state.limits.leave(place)
        state.metrics.finished("stream", code, time.monotonic() - began)

    try:
        await request.ask()
        first = await unless_disconnected(http.receive, anext(request))
    except BaseException:
        over(PLAYER_LEFT)
        raise
    failure = request.failure
    if failure is not None:
        said = [first, *[message async for message in request]]  # it has ended: this waits for nothing
        over(failure.code)
        return Response(
            b"".join(message + b"\n" for message in said),
            failure.code,
            media_type="application/x-ndjson",
            headers=error_headers(failure),
        )
    return _Lines(request, first, over)


class _Lines(StreamingResponse):
    """The messages of a request, one a line. Calls `over` with the request's code exactly once, however it ends."""

    def __init__(self, request: PendingRequest, first: bytes, over: Callable[[int], None]) -> None:
        self._request = request
        self._over = over
        super().__init__(
            self._lines(first), media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"}
        )

    async def _lines(self, first: bytes) -> AsyncIterator[bytes]:
        yield first + b"\n"
        async for message in self._request:
            yield message + b"\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            failure = self._request.failure
            self._over(200 if self._request.ready else failure.code if failure else PLAYER_LEFT)
