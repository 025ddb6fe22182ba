"""Defines the events of the state machines.

The application collects them with ``events()``, in the order in which they happened.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec

from .addresses import Address


class ClientState(IntEnum):
    """The standard's states and codes; negative ones are failures and final, like DISCONNECTED."""

    CONNECT_TOKEN_EXPIRED = -6
    INVALID_CONNECT_TOKEN = -5
    CONNECTION_TIMED_OUT = -4
    CONNECTION_RESPONSE_TIMED_OUT = -3
    CONNECTION_REQUEST_TIMED_OUT = -2
    CONNECTION_DENIED = -1
    DISCONNECTED = 0
    SENDING_CONNECTION_REQUEST = 1
    SENDING_CONNECTION_RESPONSE = 2
    CONNECTED = 3


class DisconnectReason(StrEnum):
    """Why a server's slot was freed."""

    TIMED_OUT = "timed_out"
    BY_CLIENT = "by_client"
    BY_SERVER = "by_server"
    FLOODED = "flooded"  # it sent more packets than `packet_limit`
    REPLACED = "replaced"  # the same client came again with a newer token (only with replace_connected)


class DenyReason(IntEnum):
    """lightyear's codes.

    A standard denied packet carries none, so a standard client learns only that it was denied.
    """

    FULL = 0
    BANNED = 1
    INTERNAL_ERROR = 2
    ALREADY_CONNECTED = 3
    TOKEN_USED = 4
    INVALID_TOKEN = 5
    CUSTOM = 6


class Denial(msgspec.Struct, frozen=True):
    """Why a client is denied. `text` travels only with CUSTOM and is cut to 255 bytes of UTF-8."""

    reason: DenyReason
    text: str = ""

    def __str__(self) -> str:
        return self.text or self.reason.name.lower().replace("_", " ")


class Decision(StrEnum):
    """An admission callable returns one of these, or a Denial."""

    ADMIT = "admit"
    PENDING = "pending"
    """An AdmitRequest event follows, to be answered by ``Server.admit`` or ``Server.deny``."""
    IGNORE = "ignore"
    """No answer at all, as for an invalid token."""


class Payload(msgspec.Struct, frozen=True, gc=False):
    """1..1200 bytes from the client in slot `index`; at a client, from the server (`index` is its own)."""

    index: int
    sequence: int
    data: bytes


class Frame(msgspec.Struct, frozen=True, gc=False):
    """A frame of messages (1..1200 bytes), where both sides agreed on framing."""

    index: int
    sequence: int
    data: bytes


class StateChanged(msgspec.Struct, frozen=True, gc=False):
    """Client only. Moving on to the token's next address shows as SENDING_CONNECTION_REQUEST again."""

    state: ClientState


class AdmitRequest(msgspec.Struct, frozen=True):
    """Server only: a valid, unused token of a client that has **not** proved its address yet.

    Answer with ``Server.admit(id, now)`` or ``Server.deny(id, reason, now)``; without an answer the client
    receives nothing. `user_data` is the token's 256 bytes, `token_tag` its identity (16 bytes).
    """

    id: int
    client_id: int
    user_data: bytes
    address: Address
    token_tag: bytes

    def __repr__(self) -> str:
        return f"AdmitRequest(id={self.id}, client_id={self.client_id}, address={self.address})"


class Connected(msgspec.Struct, frozen=True):
    """Server only: the client proved its address and got slot `index`."""

    index: int
    client_id: int
    address: Address
    user_data: bytes
    token_tag: bytes
    framed: bool = False
    """Whether both sides know frames."""

    def __repr__(self) -> str:
        return f"Connected(index={self.index}, client_id={self.client_id}, address={self.address})"


class Disconnected(msgspec.Struct, frozen=True):
    """Server only: slot `index` is free again."""

    index: int
    client_id: int
    reason: DisconnectReason


ClientEvent = StateChanged | Payload | Frame
ServerEvent = AdmitRequest | Connected | Disconnected | Payload | Frame
