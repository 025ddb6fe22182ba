"""Holds a server's state for one address: first a pending handshake, then a slot."""

from __future__ import annotations

import math
from enum import Enum

from .addresses import Address
from .events import Connected, Denial
from .packet import PacketReader, cipher
from .replay import ReplayWindow
from .token import PrivateToken

_PENDING_SECONDS = 15.0  # for tokens without a timeout; the reference would keep those for ever


class Stage(Enum):
    """The progress of admission."""

    ASKED = "asked"  # the application has yet to answer the AdmitRequest
    ADMITTED = "admitted"
    DENIED = "denied"


class Pending:
    """A valid token came from this address, whose sender has not yet proved that it receives there."""

    __slots__ = (
        "address",
        "decrypt",
        "denial",
        "encrypt",
        "ends",
        "expires",
        "heard",
        "id",
        "patience",
        "private",
        "stage",
    )

    def __init__(self, id: int, address: Address, private: PrivateToken, now: float, ends: float) -> None:
        self.id = id
        self.address = address
        self.private = private
        self.stage = Stage.ASKED
        self.denial: Denial | None = None
        self.encrypt = cipher(private.server_to_client_key).encrypt
        self.decrypt = cipher(private.client_to_server_key).decrypt
        self.patience = float(private.timeout_seconds) if private.timeout_seconds > 0 else _PENDING_SECONDS
        self.ends = ends
        """When the token expires: whoever is not connected by then has to ask for another one."""
        self.heard = now
        """When the last valid request came."""
        self.expires = min(now + self.patience, ends)

    def decide(self, denial: Denial | None) -> None:
        """Record the application's decision."""
        self.stage = Stage.ADMITTED if denial is None else Stage.DENIED
        self.denial = denial

    def refresh(self, now: float) -> None:
        """Note that the client repeated its request."""
        self.heard = now
        self.expires = min(now + self.patience, self.ends)


class Slot:
    """A connected client. `queued` counts its payloads in the batch of events numbered `batch`."""

    __slots__ = (
        "address",
        "allowance",
        "batch",
        "client_id",
        "confirmed",
        "counted",
        "decrypt",
        "encrypt",
        "framed",
        "index",
        "keep_alive",
        "last_receive",
        "last_send",
        "queued",
        "reader",
        "sequence",
        "timeout",
        "token_tag",
        "user_data",
        "window",
    )

    def __init__(
        self, index: int, pending: Pending, keep_alive: bytes, reader: PacketReader, framed: bool, now: float
    ) -> None:
        private = pending.private
        self.index = index
        self.reader = reader
        self.framed = framed
        """Whether client and server know frames."""
        self.client_id = private.client_id
        self.address = pending.address
        self.user_data = private.user_data
        self.token_tag = private.tag
        self.encrypt = pending.encrypt
        self.decrypt = pending.decrypt
        self.timeout = float(private.timeout_seconds) if private.timeout_seconds > 0 else math.inf
        self.keep_alive = keep_alive
        self.window = ReplayWindow()
        self.confirmed = False  # until a keep-alive or payload shows that the client knows it is connected
        self.sequence = 0
        self.last_send = self.last_receive = now
        self.batch = self.queued = 0
        self.allowance = math.inf
        """Packets that may still come, as of the time `counted`."""
        self.counted = now

    def may_send(self, now: float, limit: float) -> bool:
        """Whether the client has sent no more than `limit` packets a second; called when its allowance is used up."""
        self.allowance = min(limit, self.allowance + (now - self.counted) * limit)
        self.counted = now
        return self.allowance >= 0.0

    def connected(self) -> Connected:
        """Whether a client is connected in this slot."""
        return Connected(
            self.index, self.client_id, self.address, self.user_data, self.token_tag, self.framed
        )
