"""Messages on a connection without I/O: reliable ones, long ones, and a close that says why (docs/wire.md, section 3).

`frame.py` holds the bytes, `channel.py` the state machine of one side, `close_code.py` why a connection ends. WebSocket
needs only the last of them: it is reliable by itself.
"""

from .channel import MAX_MESSAGE_BYTES, MessageChannel
from .close_code import CloseCode
from .frame import MAX_FRAME_BYTES, Ack, Close, Fragment, Piece, Probe, encode_close, parse_frame

__all__ = [
    "MAX_FRAME_BYTES",
    "MAX_MESSAGE_BYTES",
    "Ack",
    "Close",
    "CloseCode",
    "Fragment",
    "MessageChannel",
    "Piece",
    "Probe",
    "encode_close",
    "parse_frame",
]
