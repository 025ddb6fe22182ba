"""Connects a player: asks a matchmaker for a seat and takes the connect token to the game server."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl as tls
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeAlias, TypedDict

from tipoff_client_sdk.connection import Channel, Player
from tipoff_client_sdk.errors import ConnectionFailed
from tipoff_client_sdk.inbox import Inbox, Line
from tipoff_client_sdk.matchmaking import Progress, ProgressCallback, Stage, matchmaker_url, request_seat
from tipoff_client_sdk.reconnect import NOTICED_LATER, Reconnector
from tipoff_client_sdk.transports.udp import dial_udp
from tipoff_client_sdk.transports.websocket import dial_websocket
from tipoff_shared.errors import Malformed, NoServerInTime
from tipoff_shared.messages import PlayRequest, SessionReady
from tipoff_shared.names import check_name, check_request_id, clean_player_name, new_request_id
from tipoff_shared.netcode import Address, ConnectToken, Dialect, InvalidToken
from tipoff_shared.primitives.waiting import cancel_all

Transport: TypeAlias = Literal["udp", "websocket"]


class ConnectOptions(TypedDict, total=False):
    """The optional arguments of `connect`, for callers that pass them on."""

    progress: ProgressCallback | None
    transports: Sequence[Transport]
    timeout: float
    fall_back_after: float
    receive_queue: int
    auth: str | Mapping[str, Any] | None
    name: str
    resume: bool
    client_ip: str | None
    request_id: str | None
    dialect: Dialect | Literal["standard", "lightyear"]
    ssl: tls.SSLContext | None


@asynccontextmanager
async def connect(
    url: str,
    *,
    game: str,
    version: str,
    progress: ProgressCallback | None = None,
    transports: Sequence[Transport] = ("udp", "websocket"),
    timeout: float = 60.0,
    fall_back_after: float = 3.0,
    receive_queue: int = 256,
    auth: str | Mapping[str, Any] | None = None,
    name: str = "",
    resume: bool = True,
    client_ip: str | None = None,
    request_id: str | None = None,
    dialect: Dialect | Literal["standard", "lightyear"] = Dialect.STANDARD,
    ssl: tls.SSLContext | None = None,
) -> AsyncIterator[Player]:
    """Play `game` in `version`: `async with connect("http://localhost:3000", game="arena", version="1") as player:`

    * `url`: the matchmaker, http(s) or ws(s); `/matchmaker/ws` is appended where it is missing.
    * `progress`: called with a `Progress` for every step, from the event loop.
    * `transports`: tried in this order, as far as the server offers them. UDP gets `fall_back_after` seconds for its
      first answer when another transport can be tried. The token is good for one completed connection, so the next
      transport is tried only if the one before never got through.
    * `timeout`: seconds for all of it, until connected.
    * `receive_queue`: messages that may wait for the game (see `Player`).
    * `auth`: the player's login, where the operator wants one: the token of it, or what the operator's own URL expects
      (a mapping). A login that fails raises `NotAuthenticated`; its `reason` says why.
    * `name`: what the player wants to be called, cut to 48 bytes on one line. The login's name goes before it.
    * `resume`: whether a connection that is lost is made anew, to the same seat, for as long as the game's server holds
      it (`resume_ttl` in games.toml). `Player.reconnecting` is True meanwhile, and `progress` hears `Stage.DROPPED` and
      `Stage.RESUMED`. False: `ServerLost` at once.
    * `client_ip`: for development, where the operator allows it.
    * `request_id`: 22 to 64 letters and digits that nobody guesses; repeating it returns the same session. A new one
      is made by default, and repeated when the matchmaker's socket breaks before the answer.
    * `dialect`: "lightyear" for Bevy servers. `ssl`: for a private certificate authority.

    Leaving the block tells the server, so that the seat is free at once. To play again, call `connect` again.
    `tipoff_client_sdk.errors` says what it raises.
    """
    request = PlayRequest(
        game=check_name(game, "game"),
        version=check_name(version, "version"),
        client_ip=client_ip,
        request_id=check_request_id(request_id) if request_id is not None else new_request_id(),
        auth={"token": auth} if isinstance(auth, str) else None if auth is None else dict(auth),
        name=clean_player_name(name),
    )
    report = progress or _ignore
    where = matchmaker_url(url)
    if not transports or not set(transports) <= {"udp", "websocket"}:
        raise Malformed(f"transports {tuple(transports)!r}: one or more of udp, websocket")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    report(Progress(Stage.ASKING, f"asking {where} for {game} {version}"))
    seat = await request_seat(where, request, progress=report, timeout=timeout, ssl=ssl)
    inbox = Inbox(receive_queue)
    ways, spoken = tuple(transports), Dialect(dialect)

    async def ask_again(within: float) -> SessionReady:
        again = PlayRequest(
            request.game,
            request.version,
            client_ip,
            session=seat.session_id,
            resume_key=seat.resume_key or None,
        )
        return await request_seat(where, again, progress=_ignore, timeout=within, ssl=ssl)

    async def dial_again(fresh: SessionReady, line: Line, within: float) -> Channel:
        return await _dial(fresh, line, ways, spoken, within, fall_back_after, _ignore, ssl)

    reconnector: Reconnector | None = None
    if resume and seat.resume_key:
        reconnector = Reconnector(
            inbox,
            ask_again,
            dial_again,
            report,
            session_id=seat.session_id,
            patience=(seat.resume_ttl or 0.0) + NOTICED_LATER,
        )
    line = inbox if reconnector is None else reconnector.line()
    channel = await _dial(seat, line, ways, spoken, deadline - loop.time(), fall_back_after, report, ssl)
    player = Player(
        channel,
        inbox,
        session_id=seat.session_id,
        client_id=seat.client_id,
        deployment_id=seat.deployment_id,
    )
    async with player, AsyncExitStack() as stack:
        report(Progress(Stage.CONNECTED, f"in the game, by {channel.transport}", seat.session_id))
        if reconnector is not None:
            reconnector.begin(player)
            task = asyncio.create_task(reconnector.run(), name="tipoff/reconnect")
            stack.push_async_callback(cancel_all, [task], timeout=1)
        yield player


async def _dial(
    seat: SessionReady,
    inbox: Inbox | Line,
    wanted: tuple[Transport, ...],
    dialect: Dialect,
    timeout: float,
    fall_back_after: float,
    report: ProgressCallback,
    ssl: tls.SSLContext | None,
) -> Channel:
    """Connect by the first wanted transport that works. `Refused` is final: other transports would get it too."""
    try:
        token = ConnectToken.from_base64(seat.token, dialect)
    except InvalidToken as exc:
        raise ConnectionFailed(f"the matchmaker sent a token that cannot be used: {exc}") from exc
    doubt = _clock_doubt(token, time.time())
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    open_ways = [way for way in wanted if _offered(seat, way)]
    failures: list[str] = []
    closed = True
    for number, way in enumerate(open_ways):
        remaining = deadline - loop.time()
        if remaining <= 0:
            break
        last = number == len(open_ways) - 1
        report(Progress(Stage.DIALLING, f"connecting by {way}", seat.session_id))
        try:
            if way == "udp":
                give_up = None if last else fall_back_after
                addresses = await _udp_addresses(seat, token)
                return await dial_udp(token, addresses, inbox, give_up=give_up, timeout=remaining)
            assert seat.transports.websocket is not None  # or `_offered` had left it out
            url = seat.transports.websocket.url
            return await dial_websocket(url, token.encode(), inbox, timeout=remaining, ssl=ssl)
        except ConnectionFailed as exc:
            failures.append(f"{exc}{doubt if way == 'udp' else ''}")
            closed = closed and exc.closed
    if not open_ways:
        raise ConnectionFailed(f"the server offers none of the transports {', '.join(wanted)}")
    if deadline - loop.time() <= 0:
        raise NoServerInTime(f"not connected in time: {'; '.join(failures) or 'no time was left'}")
    raise ConnectionFailed("; ".join(failures), closed=closed)


def _clock_doubt(token: ConnectToken, unix_now: float) -> str:
    """What to add to a silence by UDP, where an expired token is ignored: that the clocks differ; "" when they agree.

    The token was made a moment ago, by the matchmaker's clock. A server whose clock is as wrong as this machine's, or
    that runs on it, takes the token for expired.
    """
    lifetime = token.expire_timestamp - token.create_timestamp
    behind = token.create_timestamp - unix_now
    if abs(behind) <= lifetime / 2:
        return ""
    return (
        f". Is this machine's clock right? It is {abs(behind):.0f} s {'behind' if behind > 0 else 'ahead of'} the"
        f" matchmaker's, and a server ignores a token that has expired by its own clock ({lifetime} s)"
    )


def _offered(seat: SessionReady, way: Transport) -> bool:
    """Whether the server offers this transport. bevygap's matchmaker names none: the token's addresses are UDP then."""
    offered = seat.transports
    if way == "websocket":
        return offered.websocket is not None
    named = (offered.udp, offered.webtransport, offered.websocket, offered.tcp)
    return offered.udp is not None or all(name is None for name in named)


async def _udp_addresses(seat: SessionReady, token: ConnectToken) -> tuple[Address, ...]:
    """The addresses to dial: the token's own list, unless the UDP listener is elsewhere (a name, another port)."""
    udp = seat.transports.udp
    if udp is None or any(address.port == udp.port for address in token.addresses):
        return token.addresses
    try:
        return (Address(ipaddress.ip_address(udp.host), udp.port),)
    except ValueError:
        pass  # a name
    try:
        found = await asyncio.get_running_loop().getaddrinfo(udp.host, udp.port, type=socket.SOCK_DGRAM)
    except OSError as exc:
        raise ConnectionFailed(f"udp {udp.host}: {exc}") from exc
    unique = dict.fromkeys(Address(str(info[4][0]).partition("%")[0], udp.port) for info in found)
    return tuple(unique)[:4]


def _ignore(progress: Progress) -> None:
    """The progress callback of callers that pass none."""
