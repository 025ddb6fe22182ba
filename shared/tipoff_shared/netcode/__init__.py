"""netcode 1.02 without I/O: connect tokens, packets, and the client and server state machines.

Bytes, addresses and times go in; bytes, addresses, events and deadlines come out. Start reading at
``token.py``.
"""

from .addresses import Address
from .client import Client
from .constants import MAX_PAYLOAD_BYTES, Dialect
from .errors import (
    InvalidAddress,
    InvalidKey,
    InvalidPayload,
    InvalidToken,
    InvalidTokenField,
    NetcodeError,
    TokenExpired,
    WrongKey,
    WrongProtocol,
    WrongServer,
)
from .events import (
    AdmitRequest,
    ClientEvent,
    ClientState,
    Connected,
    Decision,
    Denial,
    DenyReason,
    Disconnected,
    DisconnectReason,
    Frame,
    Payload,
    ServerEvent,
    StateChanged,
)
from .handshakes import Admission
from .keys import PrivateKey
from .request_budget import RequestBudget
from .server import Server
from .token import ConnectToken, PrivateToken, issue_token, open_private, open_request
from .used_tokens import TokenClaim, UsedTokens

__all__ = [
    "MAX_PAYLOAD_BYTES",
    "Address",
    "Admission",
    "AdmitRequest",
    "Client",
    "ClientEvent",
    "ClientState",
    "ConnectToken",
    "Connected",
    "Decision",
    "Denial",
    "DenyReason",
    "Dialect",
    "DisconnectReason",
    "Disconnected",
    "Frame",
    "InvalidAddress",
    "InvalidKey",
    "InvalidPayload",
    "InvalidToken",
    "InvalidTokenField",
    "NetcodeError",
    "Payload",
    "PrivateKey",
    "PrivateToken",
    "RequestBudget",
    "Server",
    "ServerEvent",
    "StateChanged",
    "TokenClaim",
    "TokenExpired",
    "UsedTokens",
    "WrongKey",
    "WrongProtocol",
    "WrongServer",
    "issue_token",
    "open_private",
    "open_request",
]
