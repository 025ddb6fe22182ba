"""The application: every endpoint, the rules that hold for all of them, and the connection to NATS.

`create_app` makes a FastAPI app that any ASGI server runs; the limits below HTTP (slow heads, floods, sizes) come with
`serve`, which drives uvicorn's protocols itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.types import Message, Receive, Scope, Send

from tipoff_matchmaker_httpd.matchmaker.client import open_calls
from tipoff_matchmaker_httpd.routes.answers import error_response, failed_response
from tipoff_matchmaker_httpd.routes.demo import Demo
from tipoff_matchmaker_httpd.routes.docs_page import docs_page
from tipoff_matchmaker_httpd.routes.gs_proxy import gs_routes
from tipoff_matchmaker_httpd.routes.gs_upstreams import Upstreams
from tipoff_matchmaker_httpd.routes.hooks import PREFIX as HOOKS
from tipoff_matchmaker_httpd.routes.hooks import webhook_routes
from tipoff_matchmaker_httpd.routes.play_http import routes
from tipoff_matchmaker_httpd.routes.play_ws import PlayerSocket
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_matchmaker_httpd.state import Httpd, header
from tipoff_shared.errors import Internal, Malformed, NotAllowed, TipoffError
from tipoff_shared.hooks import load_hook_key
from tipoff_shared.nats.connection import connect
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings
from tipoff_turn_relay.admission import TurnSettings
from tipoff_turn_relay.service import BODY_LIMITS as TURN_BODY_LIMITS
from tipoff_turn_relay.service import PATH as TURN_PATH
from tipoff_turn_relay.service import TurnEndpoints, open_turn_relay

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
    (b"access-control-allow-headers", b"content-type, traceparent"),
    (b"access-control-max-age", b"600"),
    (b"content-length", b"0"),
]


class HttpdApp(FastAPI):
    """FastAPI with two things before it: WebSockets go straight to their endpoint, and the origin rule and its
    headers hold for all of HTTP."""

    httpd: Httpd
    sockets: PlayerSocket
    demo: Demo | None
    turn: TurnEndpoints | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.sockets(scope, receive, send)
            return
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        headers = scope["headers"]
        origin = header(headers, b"origin")
        answer: Response | None = None
        extra = list(_EVERYWHERE)
        if origin is not None:
            if self.httpd.origins.allows(origin, header(headers, b"host"), scope["scheme"] == "https"):
                extra += [(b"access-control-allow-origin", origin.encode("latin-1")), *_CROSS_ORIGIN]
                if scope["method"] == "OPTIONS" and header(headers, b"access-control-request-method"):
                    answer = Response(status_code=204)
                    extra += _PREFLIGHT[:-1]
            elif scope["method"] not in ("GET", "HEAD"):
                answer = error_response(NotAllowed("pages of this origin may not ask here"))
        elif (
            scope["method"] == "POST"
            and not self.httpd.origins.allow_missing
            and not scope["path"].startswith(HOOKS)  # they have a credential of their own
        ):
            answer = error_response(NotAllowed("requests without an Origin are not allowed here"))

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        if answer is not None:
            await answer(scope, receive, send_more)
        elif self.turn is not None and scope["path"] == TURN_PATH:
            await self.turn.text(scope, receive, send_more)
        else:
            await super().__call__(scope, receive, send_more)


def create_app(settings: Settings, nats_settings: NatsSettings) -> HttpdApp:
    """The app; its lifespan connects NATS and raises `Unavailable` when that fails. Raises `ConfigError` for a hook key
    that cannot be used."""
    httpd = Httpd(settings)
    hook_key = load_hook_key(
        settings.hook_key.get_secret_value(), settings.hook_key_file, nats_settings.namespace
    )
    demo = Demo(httpd) if settings.demo else None
    if settings.turn_relay:
        httpd.body_limits.update(TURN_BODY_LIMITS)
    upstreams = Upstreams()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Leaving goes from the bottom up: the feed, the turn relay, the proxy's look-ups, the calls (their players
        # get an answer), the tasks, NATS.
        async with AsyncExitStack() as stack:
            bus = await stack.enter_async_context(connect(nats_settings, name="httpd"))
            tasks = await stack.enter_async_context(Tasks("httpd"))
            calls = await stack.enter_async_context(
                open_calls(
                    bus,
                    tasks,
                    deadline=settings.request_timeout,
                    acknowledge=settings.acknowledge_timeout,
                    patience=settings.nats_patience,
                    retry=settings.retry_timeout,
                    silence=settings.silence_timeout,
                )
            )
            await stack.enter_async_context(upstreams.running(bus))
            httpd.running_on(bus, calls)
            if settings.turn_relay:
                turn_settings = TurnSettings(
                    settings.turn_requests_per_second,
                    settings.turn_registrations_per_minute,
                    settings.nats_patience,
                )
                app.turn = await stack.enter_async_context(
                    open_turn_relay(
                        turn_settings, bus, tasks, httpd.addresses, httpd.limits, httpd.metrics.registry
                    )
                )
                app.include_router(app.turn.router)
                httpd.on_drain.append(app.turn.drain)
            if demo is not None:
                await stack.enter_async_context(demo.running(bus))
            try:
                yield
            finally:
                httpd.drain()
                httpd.running_on(None, None)

    app = HttpdApp(
        title="tipoff matchmaker",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's page loads scripts from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    app.httpd = httpd
    app.sockets = PlayerSocket(httpd)
    app.demo = demo
    app.turn = None
    app.include_router(routes(httpd))
    app.include_router(gs_routes(httpd, upstreams))
    app.include_router(webhook_routes(httpd, hook_key))
    if demo is not None:
        app.include_router(demo.routes())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()))

    _typed_errors(app)
    return app


def _typed_errors(app: FastAPI) -> None:
    """Whatever goes wrong in an endpoint, the client reads `{"Error": [code, reason]}`."""

    async def typed(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, TipoffError)
        return error_response(exc)

    async def http_exception(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        return failed_response(exc.status_code, str(exc.detail), exc.headers)

    async def invalid(_: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        first: dict[str, Any] = exc.errors()[0]
        return error_response(Malformed(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"))

    async def unexpected(_: Request, exc: Exception) -> Response:
        return error_response(Internal("something went wrong here; the log says what"))

    app.add_exception_handler(TipoffError, typed)
    app.add_exception_handler(HTTPException, http_exception)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)
