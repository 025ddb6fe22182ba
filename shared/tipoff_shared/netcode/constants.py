"""Defines the sizes (bytes), rates (seconds) and packet types of netcode 1.02."""

from enum import StrEnum
from typing import Final


class Dialect(StrEnum):
    """The dialect of the peer.

    ``STANDARD`` is mas-bandwidth/netcode and everything compatible with it. ``LIGHTYEAR`` is lightyear up to
    0.19 (which bevygap uses): IPv6 addresses in network order, keep-alives that name the client id, denied
    packets with a reason. lightyear 0.20 and later writes big-endian integers and is not supported; its
    tokens are refused as invalid.
    """

    STANDARD = "standard"
    LIGHTYEAR = "lightyear"


VERSION_INFO: Final = b"NETCODE 1.02\x00"

CONNECT_TOKEN_BYTES: Final = 2048
PRIVATE_BLOCK_BYTES: Final = 1024
USER_DATA_BYTES: Final = 256
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
TOKEN_NONCE_BYTES: Final = 24
CHALLENGE_TOKEN_BYTES: Final = 300
REQUEST_BYTES: Final = 1078
MAX_PAYLOAD_BYTES: Final = 1200
MIN_ENCRYPTED_BYTES: Final = 18
MAX_DATAGRAM_BYTES: Final = 1300
MAX_TOKEN_ADDRESSES: Final = 32

REPLAY_WINDOW: Final = 256
DISCONNECT_REPEATS: Final = 10
SEND_INTERVAL: Final = 0.1
"""Between two packets while connecting, and the longest silence of a connected side."""

NEVER_EXPIRES: Final = 2**64 - 1
GLOBAL_SEQUENCE_START: Final = 2**63
"""Challenges and denials count from here up, slots from 0: both use one key and must never meet."""

PAYLOAD_QUEUE: Final = 256
"""Payloads one peer may have waiting for the application; newer ones are dropped."""

# Packet types: plain integers, because they are compared once per datagram.
REQUEST: Final = 0
DENIED: Final = 1
CHALLENGE: Final = 2
RESPONSE: Final = 3
KEEP_ALIVE: Final = 4
PAYLOAD: Final = 5
DISCONNECT: Final = 6
FRAME: Final = 7
"""Not of the standard, which drops it: a frame of messages, between two sides that agreed on framing."""
FRAMING_WIDTH: Final = 7
"""Sequence bytes by which a side says that it knows frames, in responses (client) and keep-alives (server). The
standard's writers use as few as the number needs, and its readers take any count from 1 to 8."""

PACKET_NAMES: Final = (
    "request",
    "denied",
    "challenge",
    "response",
    "keep_alive",
    "payload",
    "disconnect",
    "frame",
)
