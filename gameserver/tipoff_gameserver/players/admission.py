"""Who may come in: from a token alone, without network, the same for every transport.

Pure: user data and times go in, a `Grant`, a `Refusal` or the wish to `LookUp` comes out. Whether there is room, and
whether the client plays already, is the roster's to say (players.py); that a token is used once only is
`UsedTokens`', shared by all transports.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from enum import Enum

from tipoff_shared.messages import Failed
from tipoff_shared.netcode import (
    Address,
    DenyReason,
    Dialect,
    InvalidToken,
    PrivateKey,
    PrivateToken,
    TokenClaim,
    TokenExpired,
    UsedTokens,
    open_private,
)
from tipoff_shared.user_data import TokenUserData, decode_user_data

_SESSIONS_REMEMBERED = 16384


class Foreign(Enum):
    """What to do with a token whose user data is not ours."""

    REFUSE = "refuse"
    ACCEPT = "accept"  # stand-alone with a key given: the key is all the authority there is
    LOOK_UP = "look up"  # bevygap's matchmaker: the session stands in sessions_ly2eg


@dataclass(frozen=True, slots=True)
class Grant:
    """The bearer of a token may come in. `session_id` is "" for a token that belongs to no session of ours; `name`
    is what a login hook put into the token."""

    client_id: int
    session_id: str
    generation: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class LookUp:
    """The session of this client id has to be looked up first."""

    client_id: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code` and `text` as in the table of errors; `deny` is what a lightyear client is told over UDP."""

    code: int
    text: str
    deny: DenyReason = DenyReason.INVALID_TOKEN

    def message(self) -> Failed:
        return Failed(self.code, self.text)


USED = Refusal(403, "this token was used before; ask for a new one", DenyReason.TOKEN_USED)
BUSY = Refusal(503, "the server cannot remember more tokens just now; try again", DenyReason.INTERNAL_ERROR)


class Admission:
    """The rules of one boot of one server.

    `addresses` are those that a token must name one of, asked for when needed because ports may be known late;
    None: not compared. A boot id "" in a token means any.
    """

    def __init__(
        self,
        *,
        private_key: PrivateKey,
        protocol_id: int,
        dialect: Dialect,
        deployment_id: str,
        boot_id: str,
        foreign: Foreign = Foreign.REFUSE,
        addresses: Callable[[], Collection[Address] | None] = lambda: None,
        used_tokens: UsedTokens | None = None,
    ) -> None:
        self.used_tokens = UsedTokens() if used_tokens is None else used_tokens
        self._private_key = private_key
        self._protocol_id = protocol_id
        self._dialect = dialect
        self._deployment_id = deployment_id
        self._boot_id = boot_id
        self._foreign = foreign
        self._addresses = addresses
        self._generations: OrderedDict[str, int] = OrderedDict()

    def judge(self, client_id: int, user_data: bytes) -> Grant | LookUp | Refusal:
        """For a token that the private key authenticated: does it mean us?"""
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
        if data.deployment_id != self._deployment_id:
            return Refusal(403, "this token is for another deployment; ask for a new one")
        if data.boot_id and data.boot_id != self._boot_id:
            return Refusal(403, "the server was restarted since this token was made; ask for a new one")
        if data.generation < self._generations.get(data.session_id, 0):
            return Refusal(403, "this token's seat was given up since; ask for a new one")
        return Grant(client_id, data.session_id, data.generation, data.player)

    def open_stream(
        self, token: bytes, holder: Hashable, unix_now: float
    ) -> tuple[Grant | LookUp, PrivateToken] | Refusal:
        """For a token that came as a stream's first message: everything UDP's handshake checks, then `judge`.

        `holder` then has claimed the token and must `spend` it when it is let in. Never raises.
        """
        try:
            private = open_private(
                token,
                self._private_key,
                protocol_id=self._protocol_id,
                dialect=self._dialect,
                unix_now=unix_now,
            )
            addresses = self._addresses()
            if addresses is not None:
                private.require_server(addresses)
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
        """The holder comes in: its token is used up. False when somebody else was quicker."""
        return self.used_tokens.spend(tag, holder)

    def admitted(self, grant: Grant) -> None:
        """Remember the session's generation, so that tokens of an older seat are refused from now on."""
        if not grant.session_id:
            return
        known = self._generations.pop(grant.session_id, 0)
        self._generations[grant.session_id] = max(known, grant.generation)
        if len(self._generations) > _SESSIONS_REMEMBERED:
            self._generations.popitem(last=False)
