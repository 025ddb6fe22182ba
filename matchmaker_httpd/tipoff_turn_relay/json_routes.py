"""Serves the JSON API at `/v1/turn/...`: long polls, and confirmation by position.

Keys travel in bodies, never in a URL, where logs would keep them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from tipoff_shared.admission.answers import unless_disconnected
from tipoff_shared.admission.limits import address_key
from tipoff_shared.errors import Internal, TipoffError, TooLarge
from tipoff_turn_relay.admission import TurnAdmission
from tipoff_turn_relay.keys import GameKey
from tipoff_turn_relay.messages import (
    LONG_PATIENCE,
    MAX_NAME,
    MEANING,
    NORMAL_PATIENCE,
    Answer,
    Error,
    Exchange,
    Failed,
    GameQuit,
    Paired,
    PartnerLoading,
    Register,
    Registered,
    Start,
    StillPairing,
    Unregister,
    Updates,
)
from tipoff_turn_relay.relay import TurnRelay
from tipoff_turn_relay.text import MAX_BODY

MAX_WAIT = 25.0
"""Seconds a long poll may take: less than the pairing list and usual proxies wait."""

Key = Annotated[str, Field(pattern=r"^[0-9]{1,19}$", description="A key you were given: a secret")]
Wait = Annotated[float, Field(ge=0, le=MAX_WAIT, description="Seconds to wait for news")]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
Counter = Annotated[int, Field(ge=0, lt=2**53)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RegisterBody(_Body):
    """Your name and whom you want to play with."""

    name: Name
    partner: Annotated[
        Name | None, Field(description="The only partner wanted, who must name you as well. None: anybody")
    ] = None
    patient: Annotated[
        bool, Field(description="Stay in the list for 180 seconds of silence instead of 25")
    ] = False


class RegisteredBody(_Body):
    """Your pairing key."""

    key: Key


class PlayBody(_Body):
    """How far you are, and how long you wait."""

    key: Key
    loaded: Annotated[
        bool, Field(description="You are ready to play. False: stop at `paired`, load, then send True")
    ] = True
    wait: Wait = 20.0


class PlayingBody(_Body):
    """`waiting`: no partner yet, ask again; `paired`: load; `loading`: the partner loads, ask again; `playing`: go on
    with `key` and /v1/turn/exchange."""

    state: Literal["waiting", "paired", "loading", "playing"]
    partner: Annotated[str | None, Field(description="Its name")] = None
    role: Annotated[Literal["server", "client"] | None, Field(description="When `paired`")] = None
    key: Annotated[Key | None, Field(description="The game key, when `playing`")] = None
    player: Annotated[Literal[0, 1] | None, Field(description="When `playing`: one is 0, the other 1")] = None


class ExchangeBody(_Body):
    """What you hand over and what you fetch."""

    key: Key
    number: Annotated[
        Counter | None,
        Field(
            description="The number of `data`: 0, 1, 2, ... One that was accepted before is not accepted again, so "
            "repeat a request as often as you like. None: nothing is handed over"
        ),
    ] = None
    data: Annotated[str, Field(description="Text for the partner", max_length=MAX_BODY)] = ""
    after: Annotated[
        Counter | None,
        Field(
            description="How many of the partner's updates you have: those before it are confirmed, those from it on "
            "are answered. Begin with 0, then use the answer's `after`. None: fetch nothing"
        ),
    ] = None
    wait: Wait = 0.0


class ExchangedBody(_Body):
    """What was accepted, and the partner's updates."""

    number: Annotated[int, Field(description="The last number accepted from you; -1: none yet")]
    after: Annotated[int | None, Field(description="The position behind the last of `updates`")]
    updates: Annotated[list[str], Field(description="The partner's updates, in order")]


class KeyBody(_Body):
    """Your key."""

    key: Key


class GoneBody(_Body):
    """You have left."""

    left: bool = True


class TurnFailedBody(BaseModel):
    """`Error` holds the HTTP status and a text for people, `turn` the code of the text protocol."""

    error: Annotated[tuple[int, str], Field(alias="Error")]
    turn: int | None = None


class TurnFailed(TipoffError):
    """The relay refuses a request."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(MEANING[failed.error])
        self.error = failed.error


STATUS: dict[Error, int] = {
    Error.LIST_FULL: 503,
    Error.GAMES_FULL: 503,
    Error.CACHE_FULL: 429,
    Error.NOT_REGISTERED: 404,
    Error.DROPPED: 404,
    Error.NO_GAME: 404,
    Error.NOT_IN_GAME: 403,
    Error.PARTNER_GONE: 410,
    Error.NAMED_PARTNER_DROPPED: 410,
    Error.BEHIND: 409,
    Error.AHEAD: 409,
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": TurnFailedBody, "description": text}
    for status, text in {
        400: "The request cannot be understood",
        403: "You are not in this game (14), you are banned, or pages of this origin are not allowed here",
        404: "No such registration (5, 10) or game (13), or it has ended",
        409: "A number or position behind (18) or ahead (19) of what was sent before",
        410: "The partner left (15), or the one you named dropped (17)",
        413: "The body is over 16 KB",
        429: "The partner has too much to fetch yet (21), or too many requests from one address",
        503: "No room (11, 12), or the store is away: send the same again",
    }.items()
}


class _TurnRoute(APIRoute):
    """Answers `TurnFailed` with `{"Error": [status, text], "turn": code}`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await handle(request)
            except TurnFailed as exc:
                return _failed_response(exc)

        return handler


def json_routes(relay: TurnRelay, admission: TurnAdmission) -> APIRouter:
    """The endpoints of the JSON API for this relay."""
    router = APIRouter(prefix="/v1/turn", tags=["turn relay"], route_class=_TurnRoute)
    options: dict[str, Any] = {"responses": _RESPONSES, "response_model_exclude_none": True}

    def successful(answer: Answer) -> Answer:
        """`answer`; raises `TurnFailed` when it is an error."""
        if isinstance(answer, Failed):
            admission.answered(answer.error)
            raise TurnFailed(answer)
        admission.answered(0)
        return answer

    async def polled(http: Request, wait: float, work: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """What `work` returns. A long poll takes a place of the client's address, and ends when it disconnects."""
        address = admission.admit(http.scope)
        if not wait:
            return await work()
        async with admission.poll(address):
            return await unless_disconnected(http.receive, work())

    @router.post("/register", summary="Enter the pairing list", **options)
    async def register(body: RegisterBody, http: Request) -> RegisteredBody:
        origin = address_key(admission.admit(http.scope, registers=True))
        patience = LONG_PATIENCE if body.patient else NORMAL_PATIENCE
        answer = successful(await relay.pair(Register(body.name, body.partner or "", patience, origin)))
        assert isinstance(answer, Registered)
        return RegisteredBody(key=answer.key)

    @router.post("/play", summary="From the list into a game: repeat until `playing`", **options)
    async def play(body: PlayBody, http: Request) -> PlayingBody:
        answer = await polled(
            http, body.wait, lambda: relay.play(body.key, loaded=body.loaded, wait=body.wait)
        )
        return _playing(successful(answer))

    @router.post("/unregister", summary="Leave the pairing list", **options)
    async def unregister(body: KeyBody, http: Request) -> GoneBody:
        admission.admit(http.scope)
        successful(await relay.pair(Unregister(body.key)))
        return GoneBody()

    @router.post("/exchange", summary="Hand over an update, fetch the partner's, or both", **options)
    async def exchange(body: ExchangeBody, http: Request) -> ExchangedBody:
        if len(body.data.encode()) > MAX_BODY:
            raise TooLarge(f"data is at most {MAX_BODY} bytes")
        request = Exchange(body.key, body.number, body.data, body.after)
        answer = successful(await polled(http, body.wait, lambda: relay.exchange(request, wait=body.wait)))
        assert isinstance(answer, Updates)
        after = answer.after if body.after is not None else None
        return ExchangedBody(number=answer.number, after=after, updates=list(answer.updates))

    @router.post("/quit", summary="Leave the game", **options)
    async def leave(body: KeyBody, http: Request) -> GoneBody:
        admission.admit(http.scope)
        successful(await relay.handle(GameQuit(body.key, None)))
        return GoneBody()

    return router


def _playing(answer: Answer) -> PlayingBody:
    match answer:
        case StillPairing():
            return PlayingBody(state="waiting")
        case Paired(partner=partner, server=server):
            return PlayingBody(state="paired", partner=partner, role="server" if server else "client")
        case PartnerLoading():
            return PlayingBody(state="loading")
        case Start(game_id=game_id, secrets=secrets, names=names, player=player):
            return PlayingBody(
                state="playing",
                key=str(GameKey(game_id, secrets[player])),
                player=0 if player == 0 else 1,
                partner=names[1 - player],
            )
    raise Internal("the relay gave an unexpected answer")


def _failed_response(exc: TurnFailed) -> Response:
    status = STATUS.get(exc.error, 400)
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse({"Error": [status, exc.message], "turn": int(exc.error)}, status, headers=headers)
