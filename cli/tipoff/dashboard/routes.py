"""Serves the dashboard: the page at `/_tipoff`, its events, and what its buttons do.

    GET  /_tipoff                the page (also at `/` where no game has one)
    GET  /_tipoff/events         server-sent events, first `snapshot`; see feed.py
    POST /_tipoff/do/restart     {"game", "version"}                 as `tipoff restart`
    POST /_tipoff/do/drain       {"deployment_id", "now": false}     as `tipoff drain`
    POST /_tipoff/do/kick        {"session_id"}                      as `tipoff kick`

`access.py` says who may. Everything but the page wants the page's secret in a header.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

import tipoff_matchmaker_httpd
from tipoff.dashboard.access import AccessRule, parse_networks
from tipoff.dashboard.feed import DashboardFeed
from tipoff.dashboard.options import DashboardOptions
from tipoff.operate.admin import drain, kick, restart
from tipoff_matchmaker_httpd.compose import Extension
from tipoff_matchmaker_httpd.routes.demo import FeedStream
from tipoff_matchmaker_httpd.state import HttpdState
from tipoff_shared.admission.client_address import scope_address
from tipoff_shared.errors import Malformed, NotAllowed
from tipoff_shared.games import Game
from tipoff_shared.nats.connection import Bus
from tipoff_shared.secret import Secret

T = TypeVar("T")

PATH = "/_tipoff"
_REASON = "by the developer, from the dashboard"
_OWN = ("dashboard.js", "dashboard.css", "test_players.js")
_OF_HTTPD = ("events.js", "matchmaking.js", "connection.js", "login.js", "favicon.svg")
"""Files that the page shares with httpd's own."""
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws: wss:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class _Restart(msgspec.Struct, forbid_unknown_fields=True):
    game: str
    version: str = ""


class _Drain(msgspec.Struct, forbid_unknown_fields=True):
    deployment_id: str
    now: bool = False


class _Kick(msgspec.Struct, forbid_unknown_fields=True):
    session_id: str


def dashboard(options: DashboardOptions, games: Sequence[Game]) -> Extension:
    """The dashboard as an extension of httpd. Raises `ConfigError`."""
    hosts = frozenset(host.lower() for host in options.hosts)
    rule = AccessRule(hosts, parse_networks(options.networks), Secret(options.token))

    @asynccontextmanager
    async def extend(state: HttpdState) -> AsyncIterator[Sequence[APIRouter]]:
        feed = DashboardFeed(state.bus, options, games)
        state.on_drain(feed.records.stop)
        async with feed.running():
            yield [_routes(state, feed, rule, options)]

    return extend


def _routes(state: HttpdState, feed: DashboardFeed, rule: AccessRule, options: DashboardOptions) -> APIRouter:
    router = APIRouter(include_in_schema=False)
    own, shared = (
        Path(str(files("tipoff.dashboard") / "web")),
        Path(tipoff_matchmaker_httpd.__file__).parent / "web",
    )
    assets = {name: (own / name).read_bytes() for name in _OWN}
    assets |= {name: (shared / name).read_bytes() for name in _OF_HTTPD}
    template = (own / "index.html").read_text()

    async def page(http: Request) -> Response:
        try:
            rule.check_visitor(http.scope)
        except NotAllowed as exc:
            return HTMLResponse(_refusal(str(exc)), status_code=exc.code, headers=_HEADERS)
        return HTMLResponse(template.replace("TOKEN_OF_THE_PAGE", rule.token.reveal()), headers=_HEADERS)

    router.add_api_route(PATH, page, methods=["GET", "HEAD"])
    if options.at_root:
        router.add_api_route("/", page, methods=["GET", "HEAD"])

    @router.get(PATH + "/events")
    async def events(http: Request) -> Response:
        rule.check_page(http.scope)
        return FeedStream(feed.records, feed.claim(scope_address(http.scope, state.addresses)))

    @router.get(PATH + "/{name}")
    async def asset(http: Request, name: str) -> Response:
        rule.check_visitor(http.scope)
        if (content := assets.get(name)) is None:
            return Response(status_code=404, headers=_HEADERS)
        return Response(
            content, media_type=_TYPES[Path(name).suffix], headers=_HEADERS | {"Cache-Control": "no-cache"}
        )

    @router.post(PATH + "/do/{operation}")
    async def do(http: Request, operation: str) -> Response:
        rule.check_page(http.scope)
        done = await _act(state.bus, operation, await http.body())
        return JSONResponse(msgspec.to_builtins(done), headers=_HEADERS)

    return router


async def _act(bus: Bus, operation: str, body: bytes) -> msgspec.Struct:
    """What a button does. Raises a `TipoffError`."""
    match operation:
        case "restart":
            game = _decode(body, _Restart)
            return await restart(bus, game.game, game.version, _REASON)
        case "drain":
            server = _decode(body, _Drain)
            return await drain(bus, server.deployment_id, _REASON, now=server.now)
        case "kick":
            return await kick(bus, _decode(body, _Kick).session_id, "kicked by the developer")
        case _:
            raise Malformed(f"there is no operation {operation!r}; restart, drain and kick are expected")


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Malformed(f"not a request of the dashboard: {exc}") from exc


def _refusal(why: str) -> str:
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>tipoff</title><h1>Not for you</h1><p>{escape(why)}</p>"
    )
