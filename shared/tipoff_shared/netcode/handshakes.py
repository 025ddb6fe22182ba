"""Runs handshakes: requests, admission, challenges and responses, until a client has proved its address.

Every answer goes to an unproven address and is smaller than the 1078-byte request that it
answers; an address gets at most one each `ANSWER_INTERVAL`. What decrypting requests costs is bounded by a
``RequestBudget``. ``ignored`` counts, by reason, the requests and responses that get no answer.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from enum import Enum

from .addresses import Address
from .challenge import ChallengeTokens
from .connections import Pending, Stage
from .constants import CHALLENGE, DENIED, TAG_BYTES, Dialect
from .denial import encode_denial
from .errors import InvalidToken, TokenExpired, WrongProtocol
from .events import AdmitRequest, Decision, Denial, DenyReason
from .keys import PrivateKey
from .packet import Encrypt, PacketWriter, cipher
from .request_budget import RequestBudget
from .token import PrivateToken, open_request
from .used_tokens import TokenClaim, UsedTokens

Admission = Callable[[AdmitRequest], Decision | Denial]

ANSWER_INTERVAL = 0.05
"""Seconds between two answers to one address. Clients repeat their requests every 0.1 s."""

_FULL = Denial(DenyReason.FULL)


class Place(Enum):
    """Whether there is one for a client id."""

    FREE = "free"
    FULL = "full"
    CONNECTED = "connected"  # the client id is playing already


class Handshakes:
    """Pending handshakes by source address, at most `max_pending` of them.

    `addresses` are compared with the token's, unless None. `admission` is asked about each new request,
    `place_for` about its token. Methods return the datagram that answers the address in question.
    """

    def __init__(
        self,
        *,
        private_key: PrivateKey,
        protocol_id: int,
        dialect: Dialect,
        addresses: Collection[Address] | None,
        used_tokens: UsedTokens,
        challenges: ChallengeTokens,
        global_sequence: int,
        writer: PacketWriter,
        wall_clock: Callable[[], float],
        admission: Admission,
        place_for: Callable[[PrivateToken], Place],
        max_pending: int,
        budget: RequestBudget,
    ) -> None:
        self.ignored: Counter[str] = Counter()
        self.pending: dict[Address, Pending] = {}
        self._asked: dict[int, Pending] = {}
        self._next_id = 0
        self._key = private_key
        self._protocol_id = protocol_id
        self._dialect = dialect
        self._addresses = addresses
        self._used = used_tokens
        self._challenges = challenges
        self._sequence = global_sequence  # one counter for all addresses, far above any slot's
        self._writer = writer
        self._wall_clock = wall_clock
        self._admission = admission
        self._place_for = place_for
        self._max_pending = max_pending
        self._budget = budget
        self._turned_away: dict[Address, float] = {}
        """Addresses that were told lately that the server is full, and when."""

    # --- a request: does the sender hold a token for us?
    # -------------------------------------------------------------

    def request(self, data: bytes, address: Address, now: float) -> bytes | AdmitRequest | None:
        """Follow a 1078-byte datagram whose first byte is zero, from an address without a connection.

        Returns the answer, the request to the application, or None.
        """
        if not self._budget.open_for(address[0], now):
            return self._ignore("over_budget")
        pending = self.pending.get(address)
        if pending is not None and now < pending.heard + ANSWER_INTERVAL:
            return self._ignore("answered_just_now")
        # A captured request that is repeated from elsewhere is refused before anything costly.
        held = self._used.check(data[-TAG_BYTES:], address)
        if held is TokenClaim.TAKEN or held is TokenClaim.SPENT:
            return self._ignore(f"token_{held}")
        unix_now = self._wall_clock()
        try:
            private = open_request(
                data, self._key, protocol_id=self._protocol_id, unix_now=unix_now, dialect=self._dialect
            )
            if self._addresses is not None:
                private.require_server(self._addresses)
        except (WrongProtocol, TokenExpired) as exc:  # found without decrypting
            return self._ignore(type(exc).__name__)
        except InvalidToken as exc:
            self._budget.take(address[0], now)
            return self._ignore(type(exc).__name__)
        self._budget.take(address[0], now)
        place = self._place_for(private)
        if place is Place.CONNECTED:
            return self._ignore("client_id_connected")
        claim = self._used.claim(private.tag, address, private.expire_timestamp, unix_now)
        if not claim.granted:
            return self._ignore(f"token_{claim}")
        if place is Place.FULL:
            return self._turn_away(address, private, now)
        if pending is None:
            if len(self.pending) >= self._max_pending:
                return self._ignore("too_many_pending")
        elif pending.private.tag == private.tag:
            pending.refresh(now)  # our answer was lost, or the application has not given one yet
            return self._answer(pending)
        else:
            self._forget(pending)
        return self._ask(address, private, now, now + (private.expire_timestamp - unix_now))

    def _turn_away(self, address: Address, private: PrivateToken, now: float) -> bytes | None:
        """Say that the server is full, unless that was said to this address just now."""
        self.ignored["full"] += 1
        if now < self._turned_away.get(address, -math.inf) + ANSWER_INTERVAL:
            return None
        if len(self._turned_away) >= self._max_pending:
            late = now - ANSWER_INTERVAL
            self._turned_away = {known: at for known, at in self._turned_away.items() if at > late}
            if len(self._turned_away) >= self._max_pending:
                return None
        self._turned_away[address] = now
        return self._denied(cipher(private.server_to_client_key).encrypt, _FULL)

    def _ask(
        self, address: Address, private: PrivateToken, now: float, ends: float
    ) -> bytes | AdmitRequest | None:
        """Admission: the application's say, before the client hears anything. `ends`: when the token expires."""
        self._next_id += 1
        request = AdmitRequest(self._next_id, private.client_id, private.user_data, address, private.tag)
        decision = self._admission(request)
        if decision is Decision.IGNORE:
            return self._ignore("not_admitted")
        pending = self.pending[address] = Pending(request.id, address, private, now, ends)
        if decision is Decision.PENDING:
            self._asked[request.id] = pending
            return request
        pending.decide(decision if isinstance(decision, Denial) else None)
        return self._answer(pending)

    def decide(self, request_id: int, denial: Denial | None, now: float) -> tuple[bytes, Address] | None:
        """The application's answer to an AdmitRequest, None meaning yes.

        None when the handshake has ended.
        """
        pending = self._asked.pop(request_id, None)
        if pending is None:
            return None
        pending.decide(denial)
        pending.refresh(now)
        answer = self._answer(pending)
        return None if answer is None else (answer, pending.address)

    def _answer(self, pending: Pending) -> bytes | None:
        """The challenge or the denial, made anew for every repetition of the request."""
        if pending.stage is Stage.ASKED:
            return None
        if pending.denial is not None:
            return self._denied(pending.encrypt, pending.denial)
        body = self._challenges.issue(pending.private.client_id, pending.private.user_data)
        return self._seal(pending.encrypt, CHALLENGE, body)

    # --- a response: does the sender receive at its address?
    # ---------------------------------------------------------

    def response(self, pending: Pending, body: bytes, now: float) -> bytes | PrivateToken | None:
        """Follow an authentic response. Returns the token that may now take a slot, or a denial, or None."""
        private = pending.private
        if pending.stage is not Stage.ADMITTED:
            return self._ignore("not_admitted")
        if now >= pending.ends:
            return self._ignore(TokenExpired.__name__)
        # It must be a challenge that this very client got; the reference takes any challenge for any client.
        if self._challenges.open(body) != (private.client_id, private.user_data):
            return self._ignore("wrong_challenge")
        place = self._place_for(private)
        if place is Place.CONNECTED:
            return self._ignore("client_id_connected")
        if place is Place.FULL:
            return self._turn_away(pending.address, private, now)
        self._forget(pending)
        if not self._used.spend(private.tag, pending.address):
            return self._ignore("token_spent")  # meanwhile, over another transport
        return private

    # --- housekeeping
    # ------------------------------------------------------------------------------------------------

    def expire(self, now: float) -> float:
        """Forget who gave up; returns when the next one will have."""
        for pending in [pending for pending in self.pending.values() if pending.expires <= now]:
            self._forget(pending)
        return min((pending.expires for pending in self.pending.values()), default=math.inf)

    def clear(self) -> None:
        """Forget every pending handshake."""
        self.pending.clear()
        self._turned_away.clear()
        self._asked.clear()

    def _forget(self, pending: Pending) -> None:
        del self.pending[pending.address]
        self._asked.pop(pending.id, None)

    def _ignore(self, reason: str) -> bytes | None:
        self.ignored[reason] += 1
        return None

    def _denied(self, encrypt: Encrypt, denial: Denial) -> bytes:
        return self._seal(encrypt, DENIED, encode_denial(denial, self._dialect))

    def _seal(self, encrypt: Encrypt, kind: int, body: bytes) -> bytes:
        self._sequence += 1
        return self._writer.write(encrypt, kind, self._sequence - 1, body)
