"""Makes the ASGI application: what is served where, and the rules that hold for all of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tipoff_matchmaker_httpd.routes.docs_page import docs_routes
from tipoff_matchmaker_httpd.routes.hooks import PREFIX as HOOKS
from tipoff_matchmaker_httpd.routes.play_ws import PlayerSocket
from tipoff_matchmaker_httpd.state import HttpdState, header
from tipoff_shared.admission.answers import error_body, error_headers
from tipoff_shared.errors import Internal, Malformed, NotAllowed, TipoffError
from tipoff_shared.messages import Failed, encode_feedback
from tipoff_shared.primitives.text import one_line

_DESCRIPTION = """Players ask here for a seat in a running game server.

The usual way in is the WebSocket `/matchmaker/ws`: send one text message, `{"game": "arena", "version": "1"}`, and read
JSON messages until `{"SessionReady": {...}}` or `{"Error": [code, reason]}`; the server closes with code 1000 then.
"""

_EVERYWHERE = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),  # nobody frames the button that kills servers
    (b"referrer-policy", b"no-referrer"),
]
_CROSS_ORIGIN = [
    (b"access-control-expose-headers", b"retry-after"),
    (b"vary", b"origin"),
]
_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type, traceparent"),
    (b"access-control-max-age", b"600"),
]


class HttpdApp:
    """The ASGI application. WebSockets go straight to their endpoint, and so do the paths in `endpoints`; everything
    else goes to FastAPI. The origin rule and its headers hold for all of HTTP."""

    def __init__(self, state: HttpdState, api: FastAPI, endpoints: dict[str, ASGIApp]) -> None:
        self.endpoints = endpoints
        """Path -> what serves it instead of FastAPI."""
        self._state = state
        self._api = api
        self._sockets = PlayerSocket(state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket. Cancelling is safe."""
        if scope["type"] == "websocket":
            await self._sockets(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._api(scope, receive, send)
            return
        headers = scope["headers"]
        origin = header(headers, b"origin")
        answer: Response | None = None
        extra = list(_EVERYWHERE)
        if origin is not None:
            if self._state.origins.allows(origin, header(headers, b"host"), scope["scheme"] == "https"):
                extra += [(b"access-control-allow-origin", origin.encode("latin-1")), *_CROSS_ORIGIN]
                if scope["method"] == "OPTIONS" and header(headers, b"access-control-request-method"):
                    answer = Response(status_code=204)
                    extra += _PREFLIGHT
            elif scope["method"] not in ("GET", "HEAD"):
                self._state.log.warning(
                    "origin",
                    "refused a page of origin %s: TIPOFF_HTTPD_ORIGINS does not list it",
                    one_line(repr(origin), 120),
                )
                answer = error_response(NotAllowed("pages of this origin may not ask here"))
        elif (
            scope["method"] == "POST"
            and not self._state.origins.allow_missing
            and not scope["path"].startswith(HOOKS)  # they have their own credential
        ):
            answer = error_response(NotAllowed("requests without an Origin are not allowed here"))

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        endpoint: ASGIApp = answer or self.endpoints.get(scope["path"]) or self._api
        await endpoint(scope, receive, send_more)


def make_health_api(router: APIRouter) -> FastAPI:
    """The FastAPI application of the operator's own port."""
    api = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    api.include_router(router)
    _type_errors(api)
    return api


def make_api(routers: Iterable[APIRouter]) -> FastAPI:
    """The FastAPI application with these routes, `/docs` and typed errors."""
    api = FastAPI(
        title="tipoff matchmaker",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's page loads scripts from another host
        redoc_url=None,
    )
    for router in routers:
        api.include_router(router)
    api.include_router(docs_routes(api.openapi))
    _type_errors(api)
    return api


def error_response(error: TipoffError) -> Response:
    """`{"Error": [code, reason]}` with the code as the status, and Retry-After where it is known."""
    return Response(
        error_body(error),
        status_code=error.code,
        media_type="application/json",
        headers=error_headers(error),
    )


def _type_errors(api: FastAPI) -> None:
    """Answer every error in an endpoint with `{"Error": [code, reason]}`."""

    @api.exception_handler(TipoffError)
    async def typed(_: Request, exc: TipoffError) -> Response:
        return error_response(exc)

    @api.exception_handler(HTTPException)
    async def http_exception(_: Request, exc: HTTPException) -> Response:
        """The framework's own, with statuses that only HTTP knows, such as 405."""
        body = encode_feedback(Failed(exc.status_code, str(exc.detail)))
        return Response(body, status_code=exc.status_code, media_type="application/json", headers=exc.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, exc: RequestValidationError) -> Response:
        first: dict[str, Any] = exc.errors()[0]
        return error_response(Malformed(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"))

    @api.exception_handler(Exception)
    async def unexpected(_: Request, exc: Exception) -> Response:
        return error_response(Internal("something went wrong here; the log says what"))
