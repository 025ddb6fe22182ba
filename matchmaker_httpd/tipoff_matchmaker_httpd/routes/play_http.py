"""The HTTP endpoints: a seat as a stream of lines or as one blocking answer, and what operators ask.

`POST /matchmaker/request/{game}/{version}` | the WebSocket's messages, one JSON value a line
`POST /matchmaker/wannaplay`                | bevygap's one blocking answer
`GET /healthz`, `/readyz`, `/metrics`       | is it alive, can it serve, how is it doing
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from tipoff_matchmaker_httpd.matchmaker.feedback import Call
from tipoff_matchmaker_httpd.metrics import CONTENT_TYPE
from tipoff_matchmaker_httpd.routes.play_request import begin_call, read_request
from tipoff_matchmaker_httpd.routes.play_ws import PLAYER_LEFT
from tipoff_matchmaker_httpd.routes.wannaplay import wannaplay as answer_wannaplay
from tipoff_matchmaker_httpd.state import Httpd
from tipoff_shared.admission.answers import retry_headers, unless_disconnected
from tipoff_shared.admission.client_address import scope_address, within
from tipoff_shared.errors import (
    NotAllowed,
    Unavailable,
)
from tipoff_shared.messages import PlayRequest

_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": text}
    for code, text in {
        400: "The request cannot be understood",
        403: "Pages of this origin may not ask here",
        404: "No such game or version",
        408: "No server became ready in time",
        413: "The body is over 4 KB",
        429: "Too many requests from one address; Retry-After says when to ask again",
        503: "No matchmaker, or overloaded; Retry-After says when to ask again",
    }.items()
}


def routes(httpd: Httpd) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/matchmaker/request/{game}/{version}",
        summary="Ask for a seat; the answer is a stream",
        description="The messages of the WebSocket, one JSON value a line: `Acknowledged`, "
        "`SessionRequestAccepted`, `ProgressReport`, and last `SessionReady` or `Error`. An error that comes before "
        "anything else is the status of the response as well. The body may hold the other members of a request "
        "(`client_ip`, `request_id`, `auth`) as a JSON object.",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {}}}, **_ERRORS},
    )
    async def request(
        game: str, version: str, http: Request, client_ip: str | None = Query(None)
    ) -> Response:
        return await _stream(httpd, http, await read_request(http, game, version, client_ip))

    @router.post(
        "/matchmaker/wannaplay",
        summary="Ask for a seat; one answer",
        description="Waits until there is a seat in the configured default game and answers with "
        "`connect_token`, `gameserver_ip`, `gameserver_port` and `cert_digest`; errors are the status and its text.",
        responses={200: {"content": {"application/json": {}}}, **_ERRORS},
    )
    async def wannaplay(http: Request, client_ip: str | None = Query(None)) -> Response:
        return await answer_wannaplay(httpd, http, client_ip)

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", summary="Is the process alive?")
    async def healthz() -> Response:
        return PlainTextResponse("ok\n")

    ready = Readiness(httpd)

    @router.head("/readyz", include_in_schema=False)
    @router.get(
        "/readyz",
        summary="Can players be served?",
        description="200 when NATS is connected and a matchmaker answers within a second; else 503, and `missing` "
        "says what is not there.",
        responses={503: {"description": "Something is missing"}},
    )
    async def readyz() -> Response:
        missing = await ready.missing()
        return JSONResponse({"ready": not missing, "missing": missing}, status_code=503 if missing else 200)

    @router.get(
        "/metrics", summary="Prometheus metrics", description="For the networks that the operator allows."
    )
    async def metrics(http: Request) -> Response:
        peer = scope_address(http.scope, httpd.addresses)
        if not peer.is_unspecified and not within(peer, httpd.settings.metrics_networks):
            raise NotAllowed("metrics are for the networks in TIPOFF_HTTPD_METRICS_NETWORKS")
        return Response(httpd.metrics.render(), media_type=CONTENT_TYPE)

    return router


class Readiness:
    """Asks NATS and the matchmakers; callers at the same time share one question."""

    def __init__(self, httpd: Httpd) -> None:
        self._httpd = httpd
        self._asking: asyncio.Task[list[str]] | None = None

    async def missing(self) -> list[str]:
        """What is not there, for people; empty when players can be served."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="httpd/readyz")
        return await asyncio.shield(self._asking)

    async def _ask(self) -> list[str]:
        if self._httpd.draining.is_set():
            return ["httpd: it is going away"]
        bus = self._httpd.bus
        if not bus.connected:
            return ["nats: not connected" + (f" ({bus.last_error})" if bus.last_error else "")]
        try:
            await bus.request(bus.subjects.ping_matchmaker, b"", timeout=1)
        except Unavailable as exc:
            return [f"matchmaker: {exc.message}"]
        return []


async def _stream(httpd: Httpd, http: Request, play: PlayRequest) -> Response:
    began = time.monotonic()
    call, place = begin_call(httpd, http, play)

    def over(code: int) -> None:
        call.close()
        httpd.limits.leave(place)
        httpd.metrics.finished("stream", code, time.monotonic() - began)

    try:
        await call.ask()
        first: bytes = await unless_disconnected(http.receive, anext(call))
    except BaseException:
        over(PLAYER_LEFT)
        raise
    failure = call.failure
    if failure is not None:
        said = [first, *[message async for message in call]]  # it has ended: this waits for nothing
        over(failure.code)
        return Response(
            b"".join(message + b"\n" for message in said),
            failure.code,
            media_type="application/x-ndjson",
            headers=retry_headers(failure),
        )
    return Lines(call, first, over)


class Lines(StreamingResponse):
    """The messages of a call, one a line. `over` is called exactly once, however it ends."""

    def __init__(self, call: Call, first: bytes, over: Any) -> None:
        self._call = call
        self._over = over
        super().__init__(
            self._lines(first), media_type="application/x-ndjson", headers={"X-Accel-Buffering": "no"}
        )

    async def _lines(self, first: bytes) -> AsyncIterator[bytes]:
        yield first + b"\n"
        async for message in self._call:
            yield message + b"\n"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            failure = self._call.failure
            self._over(200 if self._call.ready else failure.code if failure else PLAYER_LEFT)
