"""Answers `/matchmaker/ws` on a stand-alone server, with the messages of a real matchmaker and a seat on itself.

No I/O: a request's bytes go in, messages come out. A client written against a stand-alone server needs no change to
play through a real matchmaker.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from tipoff_gameserver.context import Context
from tipoff_gameserver.lock import Lock
from tipoff_gameserver.players.roster import Roster
from tipoff_shared.errors import TipoffError
from tipoff_shared.games.model import Game
from tipoff_shared.messages import (
    Acknowledged,
    Failed,
    Feedback,
    PlayRequest,
    SessionReady,
    SessionRequestAccepted,
    Transports,
    UdpAddress,
    WebSocketAddress,
    decode_request,
)
from tipoff_shared.names import check_resume, clean_player_name, new_request_id, session_id
from tipoff_shared.netcode import Address, issue_token
from tipoff_shared.user_data import TokenUserData

_GAME = Game("", "")
"""A game with the default times."""

_HOST_HEADER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Dialled:
    """How a client reached the WebSocket listener: the server's address at that connection, and its Host header."""

    host: str
    port: int
    host_header: str = ""
    secure: bool = False

    @property
    def url(self) -> str:
        """`ws://host:port/` or `wss://`, under which this client reaches the game too."""
        scheme = "wss" if self.secure else "ws"
        if _HOST_HEADER.fullmatch(self.host_header):
            return f"{scheme}://{self.host_header}/"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/"


class Matchmaker:
    """Answers play requests with a seat on this server. `udp_port` is None without UDP; `resume_ttl`: seconds for which
    the seat of a player is held whose connection was lost."""

    def __init__(
        self,
        context: Context,
        boot_id: str,
        udp_port: int | None,
        roster: Roster,
        lock: Lock,
        resume_ttl: int,
    ) -> None:
        self._context = context
        self._boot_id = boot_id
        self._udp_port = udp_port
        self._roster = roster
        self._lock = lock
        self._resume_ttl = resume_ttl
        self._generation = 0

    def answer(self, request: bytes | str, dialled: Dialled, unix_now: float) -> Iterator[Feedback]:
        """The messages that answer `request`; the last one is SessionReady or Failed."""
        try:
            play = decode_request(request)
        except TipoffError as exc:
            yield Failed(exc.code, str(exc))
            return
        yield Acknowledged()
        context = self._context
        if (context.game and play.game != context.game) or (
            context.version and play.version != context.version
        ):
            yield Failed(404, f"this server runs {context.game or 'any game'} {context.version}".rstrip())
        elif play.session is not None or play.resume_key is not None:
            yield self._resume(play, dialled, unix_now)
        elif refusal := self._roster.refusal(None):
            yield refusal.message()
        elif self._lock.locked:
            yield Failed(503, "this server is closed to new players now; try again later")
        else:
            session = session_id(play.request_id or new_request_id())
            yield SessionRequestAccepted(session)
            self._roster.expect(session, _GAME.claim_time)
            yield self._ready(play, session, dialled, unix_now)

    def _resume(self, play: PlayRequest, dialled: Dialled, unix_now: float) -> SessionReady | Failed:
        try:
            session, key = check_resume(play.session, play.resume_key)
        except TipoffError as exc:
            return Failed(exc.code, str(exc))
        if not hmac.compare_digest(self._context.private_key.resume_key(session), key):
            return Failed(403, "this key is not the session's")
        if not self._roster.is_connected(_client_id(session)):
            return Failed(409, "this session has ended; ask for a new seat")
        return self._ready(play, session, dialled, unix_now)

    def _ready(self, play: PlayRequest, session: str, dialled: Dialled, unix_now: float) -> SessionReady:
        context = self._context
        udp_port = self._udp_port
        # The client can dial the address under which it reached us.
        address = Address(dialled.host.partition("%")[0], dialled.port if udp_port is None else udp_port)
        address = address.unmapped()
        client_id = _client_id(session)
        if self._resume_ttl:
            self._generation += 1  # of all sessions together: what counts is that each token has a later one
        token = issue_token(
            context.private_key,
            protocol_id=context.protocol_id,
            client_id=client_id,
            public_addresses=[address],
            user_data=TokenUserData(
                session,
                context.deployment_id,
                self._boot_id,
                self._generation,
                name=clean_player_name(play.name),
                resume_ttl=self._resume_ttl,
            ).encode(),
            lifetime=_GAME.claim_time,
            timeout=_GAME.token_timeout,
            now=unix_now,
            dialect=context.dialect,
        )
        return SessionReady(
            token=token.to_base64(),
            ip=address.host,
            port=address.port,
            session_id=session,
            client_id=str(client_id),
            deployment_id=context.deployment_id,
            transports=Transports(
                udp=None if udp_port is None else UdpAddress(address.host, udp_port),
                websocket=WebSocketAddress(dialled.url),
            ),
            resume_key=context.private_key.resume_key(session) if self._resume_ttl else msgspec.UNSET,
            resume_ttl=self._resume_ttl or msgspec.UNSET,
        )


def _client_id(session: str) -> int:
    """The same id for each repetition of a request; never 0."""
    digest = hashlib.blake2b(session.encode(), digest_size=8, person=b"tipoff client").digest()
    return int.from_bytes(digest, "little") or 1
