"""Listens for players over WebSocket: browsers, and any engine without netcode.

`/` is the game: the client's first message is its connect token (2048 bytes, binary), the answer is one text message,
`{"Admitted": {"client_index": ..., "tick_rate": ...}}` or `{"Refused": [code, reason]}` with close code 1008; then
binary messages of 1 to 1200 bytes are the game's own in both directions, and up to 65536 bytes for a client that opens
`/?max_message=65536`. A stand-alone server also answers `/matchmaker/ws`, as a matchmaker would.

Behind a reverse proxy the game is at `/gs/DEPLOYMENT_ID` too, and a player's address is what a trusted proxy says.
Until a connection has shown a token it counts in its address' share, and may be closed in favour of others. No Origin
is checked: a token in the first message lets a player in, which no foreign page has, and never a cookie.

Uses undocumented parts of websockets (written against 17.4, pinned below 18): a connection's `transport`, to see how
much is unsent and to cut off a client that does not read; `data_received` and `process_event`, to count what comes
before the library has parsed all of it, and `connection_made` and `connection_lost`.
"""

from __future__ import annotations

import asyncio
import functools
import http
import logging
import re
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.protocol import State

from tipoff_gameserver.context import Context
from tipoff_gameserver.players.player import MAX_PLAIN_BYTES, LeaveReason, Player
from tipoff_gameserver.players.roster import Roster
from tipoff_gameserver.players.token_check import USED, LookUp, Refusal, TokenCheck
from tipoff_gameserver.stand_alone import Dialled, Matchmaker
from tipoff_gameserver.throttled_log import ThrottledLog
from tipoff_gameserver.transports.sockets import GatedSocket
from tipoff_shared.admission.client_address import Address, AddressRule, parse_address, peer_address, within
from tipoff_shared.admission.connection_shares import ConnectionShares, Eviction
from tipoff_shared.admission.limits import ConnectionRate
from tipoff_shared.framing import MAX_MESSAGE_BYTES, CloseCode
from tipoff_shared.framing.close_code import cut_reason
from tipoff_shared.messages import MAX_MESSAGE, Admitted, Failed, encode_admission, encode_feedback
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.token_bucket import TokenBucket
from tipoff_shared.session_end import EndCause, SessionEnd, end_of

log = logging.getLogger(__name__)
_library = logging.getLogger(f"{__name__}.library")
_library.setLevel(
    logging.CRITICAL
)  # it logs a traceback for every port scanner; our failures are logged here

TOKEN_TIMEOUT = 5.0
"""Seconds for the opening handshake, and again for the token."""
REQUEST_TIMEOUT = 10.0
PING_INTERVAL = 8.0
PING_TIMEOUT = 10.0
CLOSE_TIMEOUT = 2.0
WRITE_BUFFER = 1 << 16
"""Bytes that may wait for a client; further messages are dropped, as on UDP."""
STALLED_AFTER = 15.0
"""Seconds within which a client must read a part of what waits for it."""
LOST_AFTER = 3.0
"""Seconds of silence after which a client that stopped reading is lost."""
FLOOD_GRACE = 0.5
"""Seconds in which a client that sent far too much can read why it is disconnected."""

RELIABLE_BUFFER = 1 << 20
"""Bytes that may wait for a client when a reliable message is to be added; with more, it is disconnected."""

_MISBEHAVED = (1002, 1003, 1007, CloseCode.POLICY, CloseCode.TOO_BIG)
_PIECE = 2048
"""Bytes that the library parses before its frames are counted: at most 341 frames, in about a millisecond."""
_FLOODED = "far too many messages a second"
_FRAME_BYTES = MAX_PLAIN_BYTES + 8
"""A short message with its frame's header: the bytes that a client may send for each frame."""
_LONG_MESSAGES = 4 * (MAX_MESSAGE_BYTES + 14)
"""Bytes that a client may send at once in any case."""


_MAX_MESSAGE_QUERY = re.compile(r"[?&]max_message=(\d{1,9})(?:&|$)", re.ASCII)


class Strangers:
    """The connections that have not shown a token yet, and how many an address may have of them."""

    def __init__(self, context: Context) -> None:
        self._shares = ConnectionShares[CountedConnection](
            context.max_strangers, context.max_strangers_per_address
        )
        self._rule = AddressRule(trusted_proxies=context.trusted_proxies)
        self._rate = ConnectionRate(
            context.connections_per_second, 2 * context.max_strangers_per_address, context.trusted_proxies
        )
        self._gated: list[GatedSocket] = []
        self._log = ThrottledLog()

    def gate(self, sock: socket.socket) -> GatedSocket:
        """The listening socket that turns away an address which connects too often."""
        self._gated.append(GatedSocket(sock, self.admits))
        return self._gated[-1]

    def admits(self, peer: str | None) -> bool:
        """Whether one more connection from there may stay. Asked once for each."""
        if self._rate.admits(peer, time.monotonic()):
            return True
        self._log.warning(
            "connection rate",
            "closed a new connection of %s: its address connects too often (TIPOFF_CONNECTIONS_PER_SECOND)",
            peer,
        )
        return False

    def enter(self, connection: CountedConnection) -> None:
        """Count a new connection. One of a trusted proxy counts from the moment when its client is named."""
        host = _host(connection)
        # Where the event loop accepts without our socket (uvloop), a connection is refused here.
        if not any(sock.used for sock in self._gated) and not self.admits(host):
            connection.hang_up(CloseCode.TRY_AGAIN_LATER, "too many connections a second")
            return
        address = peer_address(host, (), self._rule)
        proxy = within(address, self._rule.trusted_proxies)
        self._evict(self._shares.enter(connection, None if proxy else address))

    def name(self, connection: CountedConnection, request: Request) -> None:
        """Count a connection under the address that a trusted proxy names in the request."""
        address = self.address(connection, request)
        if address != parse_address(_host(connection)):
            self._evict(self._shares.assign(connection, address))

    def hang_up(self) -> None:
        """End all of them, without a wait for their goodbye."""
        for connection in self._shares:
            connection.hang_up(CloseCode.GOING_AWAY, "the server ends")
            connection.transport.close()

    def leave(self, connection: CountedConnection) -> None:
        """It has ended, or its token was good. Idempotent."""
        self._shares.leave(connection)

    def address(self, connection: ServerConnection, request: Request) -> Address:
        """Where the client is: the socket's peer, or what a trusted proxy says."""
        headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.raw_items()]
        return peer_address(_host(connection), headers, self._rule)

    def _evict(self, eviction: Eviction[CountedConnection] | None) -> None:
        if eviction is None:
            return
        whose = f"{eviction.party} has too many of them" if eviction.over_share else "there are too many"
        self._log.warning("strangers", "closed the oldest connection that has shown no token: %s", whose)
        eviction.connection.hang_up(CloseCode.TRY_AGAIN_LATER, "too many connections without a token")


class CountedConnection(ServerConnection):
    """A connection on which a client may send `limit` frames a second, and 1200 bytes for each of them; one of
    the `strangers` until its token was found good.

    The library parses 200,000 small frames a second and the game is not served meanwhile, so what comes is passed on
    in pieces, and nothing more once the client is over its limit: the connection ends with close code 1008.
    """

    def __init__(self, strangers: Strangers, limit: int, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._strangers = strangers
        self._over = False
        """We have hung up and read no more."""
        self._frames_left = TokenBucket(limit, limit)
        self._bytes_left = TokenBucket(limit * _FRAME_BYTES, max(limit * _FRAME_BYTES, _LONG_MESSAGES))
        self._frames = 0
        self.heard_at = self.loop.time()
        """When the client was heard last, in the event loop's time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A stranger comes."""
        super().connection_made(transport)
        self._strangers.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._strangers.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass bytes on to the library, until there are too many."""
        if self._over:
            self.transport.pause_reading()  # the library has resumed it
            return
        now = self.heard_at = self.loop.time()
        if self._bytes_left.take(now, amount=len(data)) is None:
            self.hang_up(CloseCode.POLICY, _FLOODED)
        for start in range(0, len(data), _PIECE):
            if self._over:
                return
            self._frames = 0
            super().data_received(data[start : start + _PIECE])
            if self._frames_left.take(now, amount=self._frames) is None:
                self.hang_up(CloseCode.POLICY, _FLOODED)

    def process_event(self, event: Any) -> None:
        """Count a frame; the first event is the opening handshake."""
        if isinstance(event, Frame):
            self._frames += 1
        elif isinstance(event, Request):
            self._strangers.name(self, event)
        if not self._over:
            super().process_event(event)

    def hang_up(self, code: int, reason: str) -> None:
        """Read no more, say why where a client can read it, and end the connection. Idempotent."""
        if self._over:
            return
        self._over = True
        if self.state is not State.OPEN:
            self.transport.abort()
            return
        self.transport.pause_reading()
        self.protocol.fail(code, reason)
        self.send_data()
        self.loop.call_later(FLOOD_GRACE, self.transport.abort)


class WebSocketLink:
    """One client's connection. `send` writes at once or drops; it never waits."""

    __slots__ = (
        "_drained",
        "_stalled_since",
        "_tasks",
        "_written",
        "address",
        "dropped",
        "max_message",
        "reason",
        "ws",
    )

    transport = "websocket"
    reliable = True

    def __init__(
        self, ws: CountedConnection, tasks: Tasks, address: str, max_message: int = MAX_PLAIN_BYTES
    ) -> None:
        self.ws = ws
        self.address = address
        self.max_message = max_message
        self.dropped = 0
        """Messages that did not fit into the write buffer."""
        self.reason: LeaveReason | None = None
        """Why the server ends the connection, where it does."""
        self._tasks = tasks
        self._written = 0
        self._drained = 0
        self._stalled_since: float | None = None

    @property
    def rtt(self) -> float | None:
        """Seconds of the last ping; None before the first one."""
        return self.ws.latency or None  # 0.0 until the first pong

    def send(self, data: bytes, reliable: bool = False) -> None:
        """Write one message, or drop it while `WRITE_BUFFER` bytes wait. With `RELIABLE_BUFFER` bytes a reliable one
        ends the connection."""
        waiting = self.ws.transport.get_write_buffer_size()
        if waiting > WRITE_BUFFER and not (reliable and self._takes_more(waiting)):
            self.dropped += 1
            return
        self._written += len(data)
        broadcast((self.ws,), data)  # the library's way to write without waiting for the client

    def _takes_more(self, waiting: int) -> bool:
        if waiting > RELIABLE_BUFFER and self.reason is None:
            self.reason = LeaveReason.TOO_SLOW
            self.close(CloseCode.TOO_SLOW, "too many reliable messages have not been read")
        return self.reason is None

    def close(self, code: int, reason: str) -> None:
        """Start the closing handshake, in its own task."""
        self._tasks.start(close_within(self.ws, code, reason, CLOSE_TIMEOUT + 1), "close")

    def is_silent(self) -> bool:
        """Whether nothing came from the client lately: one that takes nothing and says nothing is lost, not slow."""
        return self.ws.loop.time() - self.ws.heard_at >= LOST_AFTER

    def is_stalled(self, now: float) -> bool:
        """Whether the client has read nothing for `STALLED_AFTER` seconds though messages wait for it."""
        waiting = self.ws.transport.get_write_buffer_size()
        drained = self._written - waiting
        if waiting == 0 or drained > self._drained:
            self._stalled_since = None
        elif self._stalled_since is None:
            self._stalled_since = now
        self._drained = drained
        return self._stalled_since is not None and now - self._stalled_since >= STALLED_AFTER


class WebSocketListener:
    """Serves the game at the context's paths, and `matchmaker` where a stand-alone server passes one."""

    def __init__(
        self,
        context: Context,
        roster: Roster,
        token_check: TokenCheck,
        tasks: Tasks,
        tick_rate: float,
        tls: ssl.SSLContext | None,
        matchmaker: Matchmaker | None,
        framing: bool,
    ) -> None:
        self._tls = tls
        self._framing = framing
        self._paths = context.websocket_paths
        self._strangers = Strangers(context)
        self._roster = roster
        self._token_check = token_check
        self._tasks = tasks
        self._tick_rate = tick_rate
        self._matchmaker = matchmaker
        self._servers: list[Server] = []
        self._links: set[WebSocketLink] = set()
        self._log = ThrottledLog()

    async def open(self, sockets: Sequence[socket.socket]) -> None:
        """Start serving `sockets`, which are the listener's from now on."""
        for sock in sockets:
            self._servers.append(
                await serve(
                    self._serve,
                    sock=self._strangers.gate(sock),
                    ssl=self._tls,
                    compression=None,  # costs memory and lets a client send a bomb; games pack their bytes themselves
                    max_size=MAX_MESSAGE,
                    max_queue=32,
                    write_limit=WRITE_BUFFER,
                    open_timeout=TOKEN_TIMEOUT,
                    ping_interval=PING_INTERVAL,
                    ping_timeout=PING_TIMEOUT,
                    close_timeout=CLOSE_TIMEOUT,
                    process_request=self._route,
                    create_connection=functools.partial(
                        CountedConnection, self._strangers, self._roster.flood_limit
                    ),  # type: ignore[arg-type]  # a factory is enough
                    server_header=None,
                    logger=_library,
                )
            )

    def housekeeping(self, now: float) -> None:
        """Cut off clients that stopped reading."""
        for link in list(self._links):
            if link.is_stalled(now):
                link.reason = LeaveReason.TOO_SLOW
                link.ws.transport.abort()

    async def close(self) -> None:
        """Close all connections and sockets: those that have shown no token at once, players within a few seconds.
        Idempotent."""
        self._strangers.hang_up()
        for server in self._servers:
            server.close(code=CloseCode.GOING_AWAY, reason="the server ends")
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT + 1):
                for server in self._servers:
                    await server.wait_closed()
        except TimeoutError:  # a client does not read the goodbye
            for server in self._servers:
                for ws in server.connections:
                    ws.transport.abort()

    # --- one connection ---------------------------------------------------------------------------------------

    def _route(self, ws: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path not in self._paths and not (path == "/matchmaker/ws" and self._matchmaker is not None):
            return ws.respond(http.HTTPStatus.NOT_FOUND, "Nothing is here. The game is at /.\n")
        return None

    async def _serve(self, ws: ServerConnection) -> None:
        """Handle one connection, from the opening handshake to its end. Raises nothing."""
        assert ws.request is not None
        try:
            if self._matchmaker is not None and ws.request.path.startswith("/matchmaker/"):
                await self._match(ws, self._matchmaker)
                return
            admitted = await self._admit(ws)
        except ConnectionClosed:
            return
        except Exception:
            log.exception("a WebSocket connection from %s failed", self._address(ws))
            await close_within(ws, CloseCode.INTERNAL, "", CLOSE_TIMEOUT)
            return
        if admitted is not None:
            await self._play(ws, *admitted)

    async def _admit(self, ws: ServerConnection) -> tuple[Player, WebSocketLink] | None:
        """Check the token and seat the player; None if it was refused."""
        try:
            async with asyncio.timeout(TOKEN_TIMEOUT):
                token = await ws.recv()
        except TimeoutError:
            return await self._refuse(ws, Refusal(408, f"no token came within {TOKEN_TIMEOUT:g} s"))
        if not isinstance(token, bytes):
            return await self._refuse(
                ws, Refusal(400, "the first message is the connect token: 2048 bytes, binary")
            )
        # From here to the seat nothing else may happen in between, except for the look-up.
        verdict = self._token_check.open_stream(token, ws, time.time())
        if isinstance(verdict, Refusal):
            return await self._refuse(ws, verdict)
        grant, private = verdict
        if isinstance(grant, LookUp):
            found = await self._roster.look_up(grant.client_id)
            if isinstance(found, Refusal):
                return await self._refuse(ws, found)
            grant = found
        if refusal := self._roster.banned(grant, self._address(ws)) or self._roster.refusal(
            grant.client_id, grant
        ):
            return await self._refuse(ws, refusal)
        if not self._token_check.spend(private.tag, ws):
            return await self._refuse(ws, USED)
        assert isinstance(ws, CountedConnection)
        self._strangers.leave(ws)
        longest = self._longest(ws)
        if longest > MAX_PLAIN_BYTES:
            ws.protocol.max_message_size = longest  # until here it was that of a token
        link = WebSocketLink(ws, self._tasks, self._address(ws), longest)
        player = self._roster.seat(grant, link)
        answer = encode_admission(Admitted(player.id - 1, self._tick_rate, longest)).decode()
        broadcast((ws,), answer)
        self._roster.joined(player)
        return player, link

    def _longest(self, ws: ServerConnection) -> int:
        """Bytes of the longest message either way: what the client says that it takes, within 1200 and 65536."""
        assert ws.request is not None
        if not self._framing:
            return MAX_PLAIN_BYTES
        asked = _MAX_MESSAGE_QUERY.search(ws.request.path)
        return max(MAX_PLAIN_BYTES, min(int(asked[1]), MAX_MESSAGE_BYTES)) if asked else MAX_PLAIN_BYTES

    async def _refuse(self, ws: ServerConnection, refusal: Refusal) -> tuple[Player, WebSocketLink] | None:
        """Send the reason and hang up. Returns None, for `return await`."""
        self._log.warning("refused", "refused %s: %s", self._address(ws), refusal.text)
        broadcast((ws,), encode_admission(refusal.message()).decode())
        await close_within(ws, CloseCode.POLICY, refusal.text, CLOSE_TIMEOUT)
        return None

    async def _play(self, ws: ServerConnection, player: Player, link: WebSocketLink) -> None:
        reason, lost = LeaveReason.LEFT, False
        end: SessionEnd | None = None
        received, takes = self._roster.received, self._roster.takes
        longest = player.max_message
        waits = longest > MAX_PLAIN_BYTES
        self._links.add(link)
        try:
            async for message in ws:
                if player.link is not link:
                    break  # the player has connected anew
                if not isinstance(message, bytes) or not 0 < len(message) <= longest:
                    reason = LeaveReason.MISBEHAVED
                    text = f"messages are binary and have 1 to {longest} bytes"
                    end = end_of(EndCause.MISBEHAVED, text)
                    await close_within(ws, CloseCode.POLICY, text, CLOSE_TIMEOUT)
                    break
                while waits and player.connected and not takes(player):
                    await self._roster.next_second()
                received(player, message)
        except ConnectionClosed as exc:
            lost = exc.rcvd is None or not _is_goodbye(exc.rcvd.code)
            sent = exc.sent.code if exc.sent is not None and not exc.rcvd_then_sent else 0
            if sent == CloseCode.INTERNAL:  # the library's keepalive gave up
                reason = LeaveReason.TIMED_OUT
            elif sent in _MISBEHAVED:
                reason, lost = LeaveReason.MISBEHAVED, False
            elif lost:
                end = end_of(EndCause.LOST)
        finally:
            self._links.discard(link)
            if link.reason is not None:
                reason, lost, end = link.reason, link.is_silent(), None
            if lost:
                self._roster.lost(player, link, reason, end)
            elif player.link is link:
                self._roster.left(player, reason, end)

    async def _match(self, ws: ServerConnection, matchmaker: Matchmaker) -> None:
        """Answer one request to play, as httpd and a matchmaker would."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                request = await ws.recv()
        except TimeoutError:
            request = b""
        code = 1000
        for feedback in matchmaker.answer(request, self._dialled(ws), time.time()):
            broadcast((ws,), encode_feedback(feedback).decode())
            if isinstance(feedback, Failed) and feedback.code == 400:
                code = CloseCode.POLICY
        await close_within(ws, code, "", CLOSE_TIMEOUT)

    def _address(self, ws: ServerConnection) -> str:
        """The player's address, for people and logs; no decision depends on it."""
        if ws.request is not None and ws.remote_address:
            told = self._strangers.address(ws, ws.request)
            if told != parse_address(ws.remote_address[0]):
                return str(told)
        return _peer(ws)

    def _dialled(self, ws: ServerConnection) -> Dialled:
        """How the client reached this server: it will reach the game in the same way."""
        assert ws.request is not None
        host, port = ws.local_address[:2]
        return Dialled(host, port, ws.request.headers.get("Host", ""), self._tls is not None)


def _is_goodbye(code: int) -> bool:
    """Whether a client that closes with this code leaves. Its library closes with others, when it hears nothing."""
    return code in (1000, 1001, 1005) or code >= 3000


async def close_within(ws: ServerConnection, code: int, reason: str, timeout: float) -> None:
    """The closing handshake; after `timeout` seconds (a client that does not read) the connection is cut."""
    try:
        async with asyncio.timeout(timeout):
            await ws.close(code, cut_reason(reason))
    except TimeoutError:
        ws.transport.abort()


def _host(ws: ServerConnection) -> str | None:
    """The socket's peer; None for a client that is gone."""
    peer = ws.transport.get_extra_info("peername")
    return peer[0] if peer else None


def _peer(ws: ServerConnection) -> str:
    peer = ws.remote_address
    if not peer:
        return "a client that is gone"
    return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"
