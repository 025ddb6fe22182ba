"""Decides who may come in, from the connect token only and without network, the same for every transport.

Pure: user data and times go in, a `Grant`, a `Refusal` or a `LookUp` comes out. The roster knows whether there is room
and whether the client plays already; `UsedTokens`, shared by all transports, lets a token in once. Over UDP,
`tipoff_shared/netcode/handshakes.py` checks a token's signature, expiry and address before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from enum import Enum

from tipoff_gameserver.context import Context
from tipoff_shared.messages import Failed
from tipoff_shared.netcode import (
    Address,
    DenyReason,
    InvalidToken,
    PrivateToken,
    TokenClaim,
    TokenExpired,
    UsedTokens,
    open_private,
)
from tipoff_shared.user_data import TokenUserData, decode_user_data

_SESSIONS_REMEMBERED = 16384
_NEVER = 1 << 32
"""More than any token's generation."""


class Foreign(Enum):
    """What to do with a token whose user data is not ours."""

    REFUSE = "refuse"
    ACCEPT = "accept"  # stand-alone with a given key: the key is the only authority
    LOOK_UP = "look up"  # bevygap's matchmaker: the session stands in sessions_ly2eg

    @staticmethod
    def of(context: Context) -> Foreign:
        """What a server with this context does."""
        if context.stand_alone:
            return Foreign.ACCEPT
        return Foreign.LOOK_UP if context.bevygap else Foreign.REFUSE


@dataclass(frozen=True, slots=True)
class Grant:
    """The bearer of a token may come in. `session_id` is "" for a token that belongs to none of our sessions;
    `user_id` and `name` are the token's, "" where it has none. `resume_ttl`: seconds for which the seat is held after a
    lost connection."""

    client_id: int
    session_id: str
    generation: int = 0
    user_id: str = ""
    name: str = ""
    resume_ttl: int = 0


@dataclass(frozen=True, slots=True)
class LookUp:
    """The session of this client id must be looked up first."""

    client_id: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The bearer of a token may not come in. `code` and `text` are as in the table of errors; `deny` is what a
    lightyear client is sent over UDP."""

    code: int
    text: str
    deny: DenyReason = DenyReason.INVALID_TOKEN

    def message(self) -> Failed:
        """The refusal as a message to the client."""
        return Failed(self.code, self.text)


USED = Refusal(403, "this token was used before; ask for a new one", DenyReason.TOKEN_USED)
BUSY = Refusal(503, "the server cannot remember more tokens just now; try again", DenyReason.INTERNAL_ERROR)


class TokenCheck:
    """The rules of one run of one server.

    A token must name one of `addresses`; None: they are not compared. A token with boot id "" fits any run.
    """

    def __init__(
        self,
        context: Context,
        boot_id: str,
        addresses: Collection[Address] | None,
        used_tokens: UsedTokens | None = None,
    ) -> None:
        self.used_tokens = UsedTokens() if used_tokens is None else used_tokens
        self._context = context
        self._boot_id = boot_id
        self._foreign = Foreign.of(context)
        self._addresses = addresses
        self._generations: OrderedDict[str, int] = OrderedDict()

    def judge(self, client_id: int, user_data: bytes) -> Grant | LookUp | Refusal:
        """Whether a token that the private key authenticated is meant for this server."""
        try:
            ours = decode_user_data(user_data)
        except ValueError:  # UnicodeDecodeError is one
            ours = None
            if self._foreign is not Foreign.ACCEPT:
                return Refusal(403, "the token's user data cannot be read; the matchmaker is of another kind")
        if ours is not None:
            return self._judge_ours(client_id, ours)
        if self._foreign is Foreign.ACCEPT:
            return Grant(client_id, "")
        if self._foreign is Foreign.LOOK_UP:
            return LookUp(client_id)
        return Refusal(403, "the token names no session; this server takes only tokens of its matchmaker")

    def _judge_ours(self, client_id: int, data: TokenUserData) -> Grant | Refusal:
        if data.deployment_id != self._context.deployment_id:
            return Refusal(403, "this token is for another deployment; ask for a new one")
        if data.boot_id and data.boot_id != self._boot_id:
            return Refusal(403, "the server was restarted since this token was made; ask for a new one")
        if data.generation < self._generations.get(data.session_id, 0):
            return Refusal(403, "this token's seat was given up since; ask for a new one")
        return Grant(client_id, data.session_id, data.generation, data.user_id, data.name, data.resume_ttl)

    def open_stream(
        self, token: bytes, holder: Hashable, unix_now: float
    ) -> tuple[Grant | LookUp, PrivateToken] | Refusal:
        """Check a token that came as a stream's first message: everything UDP's handshake checks, then `judge`.

        Unless refused, `holder` has claimed the token and must `spend` it when it is let in. Never raises.
        """
        try:
            private = open_private(
                token,
                self._context.private_key,
                protocol_id=self._context.protocol_id,
                dialect=self._context.dialect,
                unix_now=unix_now,
            )
            if self._addresses is not None:
                private.require_server(self._addresses)
        except TokenExpired as exc:
            return Refusal(403, str(exc))
        except InvalidToken as exc:
            return Refusal(403, f"the token is not for this server: {exc}")
        verdict = self.judge(private.client_id, private.user_data)
        if isinstance(verdict, Refusal):
            return verdict
        claim = self.used_tokens.claim(private.tag, holder, private.expire_timestamp, unix_now, proven=True)
        if claim.granted:
            return verdict, private
        return BUSY if claim is TokenClaim.FULL else USED

    def spend(self, tag: bytes, holder: Hashable) -> bool:
        """Use up the token as its holder is let in; False if another holder was quicker."""
        return self.used_tokens.spend(tag, holder)

    def admitted(self, grant: Grant) -> None:
        """Remember the session's generation, so that tokens of an older seat are refused from now on."""
        if not grant.session_id:
            return
        self._remember(grant.session_id, grant.generation)

    def given_up(self, session_id: str) -> None:
        """The session's seat is free for others: refuse all its tokens from now on. One that was made while the seat
        was still held may come late."""
        self._remember(session_id, _NEVER)

    def _remember(self, session_id: str, generation: int) -> None:
        known = self._generations.pop(session_id, 0)
        self._generations[session_id] = max(known, generation)
        if len(self._generations) > _SESSIONS_REMEMBERED:
            self._generations.popitem(last=False)
