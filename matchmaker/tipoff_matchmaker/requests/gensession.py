"""Serves bevygap's micro service `gensession`: one question, one answer, as its `wannaplay` route asks it.

Served through nats.micro (discovery, statistics), but each request in its own task: nats.micro runs handlers one
at a time. Requests in hand are finished before the service is stopped, because stopping it would lose them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
from nats.micro import add_service
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, Service

from tipoff_matchmaker.requests.pending import PendingRequest, PendingRequests
from tipoff_matchmaker.requests.subscription import address_or_nothing
from tipoff_shared import names
from tipoff_shared.errors import ConfigError, Internal, Malformed, TipoffError, Unavailable, UnknownGame
from tipoff_shared.games import Game, SomeGames
from tipoff_shared.messages import MAX_MESSAGE
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import translated
from tipoff_shared.primitives.tasks import BoundedHandlers
from tipoff_shared.primitives.text import describe
from tipoff_shared.subjects import RETRY_AFTER_HEADER, SERVICE_ERROR, SERVICE_ERROR_CODE

log = logging.getLogger(__name__)

NAME, VERSION, QUEUE = "gensession", "0.0.1", "session_queue"


class GenSessionRequest(msgspec.Struct):
    """As bevygap's httpd sends it."""

    client_ip: str | None = None


class GenSessionAnswer(msgspec.Struct):
    """As bevygap's client reads it; `connect_token` is base64, a secret."""

    connect_token: str
    gameserver_ip: str
    gameserver_port: int
    cert_digest: str


def default_game(games: SomeGames, name: str) -> Game:
    """The game of a request that names none. `name` is `NAME/VERSION`, or "" for the only bevygap game, else the first
    game. Raises `ConfigError`."""
    known = games.all()
    if name:
        for game in known:
            if f"{game.name}/{game.version}" == name:
                return game
        allowed = ", ".join(f"{game.name}/{game.version}" for game in known)
        raise ConfigError(f"TIPOFF_MATCHMAKER_DEFAULT_GAME={name!r}: {allowed} are allowed")
    if not known:
        raise ConfigError("there is no game")
    bevygap = [game for game in known if game.bevygap]
    return bevygap[0] if len(bevygap) == 1 else known[0]


class GenSession:
    """The micro service. `game`: the one that there is to play now; it raises `ConfigError` without one. Requests count
    in `handlers`, as all play requests do."""

    def __init__(
        self, bus: Bus, game: Callable[[], Game], pending: PendingRequests, handlers: BoundedHandlers
    ) -> None:
        self._bus = bus
        self._game = game
        self._pending = pending
        self._handlers = handlers
        self._service: Service | None = None

    async def open(self) -> None:
        """Begin to answer. Raises `Unavailable`."""
        with translated():
            self._service = await add_service(
                self._bus.nc,
                name=NAME,
                version=VERSION,
                description="A session, a connect token and where to connect",
                queue_group=QUEUE,
            )
            await self._service.add_endpoint(
                EndpointConfig(name=NAME, subject=self._bus.subjects.gensession, handler=self._received)
            )

    async def stop(self) -> None:
        """Stop the service, after the requests in hand have been answered; idempotent."""
        service, self._service = self._service, None
        if service is not None and self._bus.connected:
            try:
                with translated():
                    await service.stop()
            except Unavailable as exc:
                log.info("stopping %s: %s", NAME, exc)

    async def _received(self, request: Request) -> None:
        if not self._handlers.submit(lambda: self._handle(request)):
            await self._fail(
                request, Unavailable("too many players ask at once, try again soon", retry_after=2)
            )

    async def _handle(self, request: Request) -> None:
        try:
            ready = await self._pending.play(self._request(request))
        except TipoffError as exc:
            await self._fail(request, exc)
            return
        except Exception:
            log.exception("a gensession request failed")
            await self._fail(request, Internal("the matchmaker has made a mistake; it is logged"))
            return
        answer = GenSessionAnswer(ready.token, ready.ip, ready.port, ready.cert_digest)
        await self._respond(request, msgspec.json.encode(answer), None)

    def _request(self, request: Request) -> PendingRequest:
        if len(request.data) > MAX_MESSAGE:
            raise Malformed(f"a request is at most {MAX_MESSAGE} bytes")
        try:
            asked = msgspec.json.decode(request.data or b"{}", type=GenSessionRequest)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise Malformed(f'not a request like {{"client_ip": "203.0.113.7"}}: {exc}') from exc
        try:
            game = self._game()
        except ConfigError as exc:
            raise UnknownGame("the game that players without a choice get is not there") from exc
        return PendingRequest(
            session_id=names.session_id(names.new_request_id()),
            game=game,
            client_ip=address_or_nothing(asked.client_ip),
            timeout=game.request_timeout,
            tell=_no_progress,
        )

    async def _fail(self, request: Request, error: TipoffError) -> None:
        headers = {SERVICE_ERROR_CODE: str(error.code), SERVICE_ERROR: " ".join(str(error).split())}
        if error.retry_after is not None:
            headers[RETRY_AFTER_HEADER] = f"{error.retry_after:g}"
        await self._respond(request, b"", headers)

    async def _respond(self, request: Request, data: bytes, headers: dict[str, str] | None) -> None:
        try:
            with translated():
                await request.respond(data, headers=headers)
        except (Unavailable, ValueError) as exc:  # ValueError: the request had no reply subject
            log.info("an answer could not be sent: %s", describe(exc))


async def _no_progress(text: str) -> None:
    """This protocol has one answer and nothing before it."""
