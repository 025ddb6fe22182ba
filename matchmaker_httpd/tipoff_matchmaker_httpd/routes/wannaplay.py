"""`POST /matchmaker/wannaplay`: one question, one blocking answer, as bevygap has it."""

from __future__ import annotations

import time

import msgspec
import nats.errors
from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from tipoff_matchmaker_httpd.routes.play_request import begin_call, read_request
from tipoff_matchmaker_httpd.routes.play_ws import PLAYER_LEFT
from tipoff_matchmaker_httpd.state import Httpd
from tipoff_shared.admission.answers import retry_headers, unless_disconnected
from tipoff_shared.admission.client_address import player_address, scope_address
from tipoff_shared.errors import Internal, NoServerInTime, TipoffError, Unavailable, from_code
from tipoff_shared.messages import PlayRequest, SessionReady, decode_feedback
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.subjects import SERVICE_ERROR, SERVICE_ERROR_CODE


class WannaPlay(msgspec.Struct):
    """bevygap's answer to one blocking request."""

    connect_token: str
    gameserver_ip: str
    gameserver_port: int
    cert_digest: str


async def wannaplay(httpd: Httpd, http: Request, client_ip: str | None) -> Response:
    began = time.monotonic()
    code = PLAYER_LEFT
    try:
        settings = httpd.settings
        if settings.default_game:
            play = await read_request(http, settings.default_game, settings.default_version, client_ip)
            answer = await _wait_for_seat(httpd, http, play)
        else:
            answer = await _gensession(httpd, http, client_ip)
        code = 200
        return Response(answer, media_type="application/json")
    except TipoffError as exc:
        code = exc.code
        return PlainTextResponse(exc.message, exc.code, headers=retry_headers(exc))
    finally:
        httpd.metrics.finished("wannaplay", code, time.monotonic() - began)


async def _wait_for_seat(httpd: Httpd, http: Request, play: PlayRequest) -> bytes:
    call, place = begin_call(httpd, http, play)

    async def last_message() -> bytes:
        await call.ask()
        last = b""
        async for message in call:
            last = message
        return last

    try:
        last = await unless_disconnected(http.receive, last_message())
    finally:
        call.close()
        httpd.limits.leave(place)
    if call.failure is not None:
        raise call.failure
    ready = decode_feedback(last)
    if not isinstance(ready, SessionReady):
        raise Internal("the matchmaker ended without an answer")
    return msgspec.json.encode(WannaPlay(ready.token, ready.ip, ready.port, ready.cert_digest))


async def _gensession(httpd: Httpd, http: Request, client_ip: str | None) -> bytes:
    """bevygap's own way: one question to the `gensession` service."""
    address = scope_address(http.scope, httpd.addresses)
    payload = msgspec.json.encode({"client_ip": player_address(address, client_ip, httpd.addresses)})
    place = httpd.admit(address)
    try:
        if httpd.draining.is_set():
            raise Unavailable("this server is going away; ask again", retry_after=1)
        bus = httpd.bus
        try:
            question = bus.nc.request(
                bus.subjects.gensession, payload, timeout=httpd.settings.request_timeout
            )
            msg = await unless_disconnected(http.receive, question)
        except PermissionDenied as exc:
            raise exc.again() from exc
        except nats.errors.NoRespondersError as exc:
            raise Unavailable("no matchmaker is running", retry_after=2) from exc
        except (TimeoutError, nats.errors.TimeoutError) as exc:
            raise NoServerInTime("no server became ready in time") from exc
        except nats.errors.Error as exc:
            raise Unavailable(f"NATS is away: {str(exc) or type(exc).__name__}", retry_after=2) from exc
    finally:
        httpd.limits.leave(place)
    if msg.headers and (code := msg.headers.get(SERVICE_ERROR_CODE)):
        text = msg.headers.get(SERVICE_ERROR, "the matchmaker failed")
        raise from_code(int(code) if code.isdigit() else 500, text)
    try:
        return msgspec.json.encode(msgspec.json.decode(msg.data, type=WannaPlay))
    except (msgspec.DecodeError, UnicodeError) as exc:
        raise Internal("the matchmaker's answer cannot be read") from exc
