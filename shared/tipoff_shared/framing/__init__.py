"""Messages on a connection without I/O: reliable ones, long ones, and a close that says why (docs/wire.md, section 3).

`message.py` says what a message is, `frame.py` holds the bytes, `channel.py` the state machine of one side,
`close_code.py` why a connection ends. WebSocket needs neither frames nor a channel: it is reliable by itself.
"""

from .channel import MessageChannel
from .close_code import CloseCode
from .frame import MAX_FRAME_BYTES, Ack, Close, Fragment, Piece, Probe, encode_close, parse_frame
from .message import MAX_MESSAGE_BYTES, message_bytes

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
    "message_bytes",
    "parse_frame",
]
