"""Serves `POST /matchmaker/wannaplay`: one request, one blocking answer, compatible with bevygap."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter, Query, Request
from starlette.responses import PlainTextResponse, Response

from tipoff_matchmaker_httpd.routes.play_http import ERRORS, begin_request, read_request
from tipoff_matchmaker_httpd.routes.play_ws import PLAYER_LEFT
from tipoff_matchmaker_httpd.state import HttpdState, header
from tipoff_shared.admission.answers import error_headers, unless_disconnected
from tipoff_shared.admission.client_address import player_address, scope_address
from tipoff_shared.errors import Internal, NoServerInTime, TipoffError, Unavailable, from_code
from tipoff_shared.messages import PlayRequest, SessionReady, decode_feedback
from tipoff_shared.nats.errors import NoAnswer, NoListener, PermissionDenied
from tipoff_shared.subjects import SERVICE_ERROR, SERVICE_ERROR_CODE


class WannaPlay(msgspec.Struct):
    """bevygap's answer: where to connect, and with what token."""

    connect_token: str
    gameserver_ip: str
    gameserver_port: int
    cert_digest: str


def wannaplay_routes(state: HttpdState) -> APIRouter:
    """The route of the blocking answer."""
    router = APIRouter()

    @router.post(
        "/matchmaker/wannaplay",
        summary="Ask for a seat; one answer",
        description="Waits until there is a seat in the configured default game and answers with "
        "`connect_token`, `gameserver_ip`, `gameserver_port` and `cert_digest`; errors are the status and its text.",
        responses={200: {"content": {"application/json": {}}}, **ERRORS},
    )
    async def wannaplay(http: Request, client_ip: str | None = Query(None)) -> Response:
        return await _wannaplay(state, http, client_ip)

    return router


async def _wannaplay(state: HttpdState, http: Request, client_ip: str | None) -> Response:
    began = time.monotonic()
    code = PLAYER_LEFT
    try:
        settings = state.settings
        if settings.default_game:
            play = await read_request(http, settings.default_game, settings.default_version, client_ip)
            answer = await _ask_matchmaker(state, http, play)
        else:
            answer = await _ask_gensession(state, http, client_ip)
        code = 200
        return Response(answer, media_type="application/json")
    except TipoffError as exc:
        code = exc.code
        return PlainTextResponse(exc.message, exc.code, headers=error_headers(exc))
    finally:
        state.metrics.finished("wannaplay", code, time.monotonic() - began)


async def _ask_matchmaker(state: HttpdState, http: Request, play: PlayRequest) -> bytes:
    request, place = await begin_request(state, http, play)

    async def last_message() -> bytes:
        await request.ask()
        last = b""
        async for message in request:
            last = message
        return last

    try:
        last = await unless_disconnected(http.receive, last_message())
    finally:
        request.close()
        state.limits.leave(place)
    if request.failure is not None:
        raise request.failure
    ready = decode_feedback(last)
    if not isinstance(ready, SessionReady):
        raise Internal("the matchmaker ended without an answer")
    return msgspec.json.encode(WannaPlay(ready.token, ready.ip, ready.port, ready.cert_digest))


async def _ask_gensession(state: HttpdState, http: Request, client_ip: str | None) -> bytes:
    """As bevygap's httpd does it: one request to the `gensession` service."""
    address = scope_address(http.scope, state.addresses)
    payload = msgspec.json.encode({"client_ip": player_address(address, client_ip, state.addresses)})
    place = state.admit(address)
    try:
        # bevygap's service hears nothing of the player, so a login only opens the door.
        await state.log_in(PlayRequest("", ""), address, header(http.scope["headers"], b"authorization"))
        if state.draining.is_set():
            raise Unavailable("this server is stopping; ask again", retry_after=1)
        asking = state.bus.request(
            state.bus.subjects.gensession, payload, timeout=state.settings.request_timeout
        )
        try:
            msg = await unless_disconnected(http.receive, asking)
        except NoListener as exc:
            raise Unavailable("no matchmaker is running", retry_after=2) from exc
        except NoAnswer as exc:
            raise NoServerInTime("no server became ready in time") from exc
        except PermissionDenied:
            raise
        except Unavailable as exc:
            raise Unavailable(exc.message, retry_after=2) from exc
    finally:
        state.limits.leave(place)
    if msg.headers and (code := msg.headers.get(SERVICE_ERROR_CODE)):
        text = msg.headers.get(SERVICE_ERROR, "the matchmaker failed")
        raise from_code(int(code) if code.isdigit() else 500, text)
    try:
        return msgspec.json.encode(msgspec.json.decode(msg.data, type=WannaPlay))
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise Internal("the matchmaker's answer cannot be read") from exc
