"""The bytes of a frame: parts one after the other, at most 1200 bytes, integers little-endian.

    ack       1 | u32 next | 16 bytes, bit i: next + i has arrived
    fragment  2 | u32 number | u16 length, with 0x8000 on a message's last | data        reliable
    piece     3 | u16 message | u8 index | u8 last index | u16 length | data             unreliable, for over 1200 bytes
    close     4 | u16 code | u8 length | reason in UTF-8
    probe     5                                                                          please send an ack

A reader ignores the rest of a frame from a part of another type on: later versions may add parts. Parsing takes hostile
bytes: parts or `Malformed` come out.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, TypeAlias

from tipoff_shared.errors import Malformed
from tipoff_shared.framing.close_code import cut_reason
from tipoff_shared.netcode import MAX_PAYLOAD_BYTES

MAX_FRAME_BYTES = MAX_PAYLOAD_BYTES
WINDOW = 128
"""Fragments from the first missing one on that a receiver takes, and bits of an ack."""

_ACK = struct.Struct("<BI16s")
_FRAGMENT = struct.Struct("<BIH")
_PIECE = struct.Struct("<BHBBH")
_CLOSE = struct.Struct("<BHB")
_LAST = 0x8000
_BITS = WINDOW // 8

FRAGMENT_BYTES = MAX_FRAME_BYTES - _ACK.size - _FRAGMENT.size
"""Data of the longest fragment: it goes into one frame with an ack."""
PIECE_BYTES = MAX_FRAME_BYTES - _PIECE.size


class Ack(NamedTuple):
    """All fragments before `next` have arrived and been taken; `next + i` has arrived, for each bit i."""

    next: int
    bits: int


class Fragment(NamedTuple):
    """A part of the ordered stream of reliable messages; `last` ends a message."""

    number: int
    last: bool
    data: bytes


class Piece(NamedTuple):
    """A part of one unreliable message: number `place` of 0 to `last`."""

    message: int
    place: int
    last: int
    data: bytes


class Close(NamedTuple):
    """The sender ends the connection."""

    code: int
    reason: str


class Probe(NamedTuple):
    """The sender wants an ack."""


Part: TypeAlias = Ack | Fragment | Piece | Close | Probe


def encode_ack(next: int, bits: int) -> bytes:
    """An ack, 21 bytes."""
    return _ACK.pack(1, next, bits.to_bytes(_BITS, "little"))


def encode_fragment(number: int, last: bool, data: bytes) -> bytes:
    """A fragment of 1 to `FRAGMENT_BYTES`."""
    return _FRAGMENT.pack(2, number, len(data) | (_LAST if last else 0)) + data


def encode_piece(message: int, index: int, last: int, data: bytes) -> bytes:
    """A piece of 1 to `PIECE_BYTES`."""
    return _PIECE.pack(3, message, index, last, len(data)) + data


def encode_close(code: int, reason: str) -> bytes:
    """A close; the reason is cut to 123 bytes."""
    raw = cut_reason(reason).encode()
    return _CLOSE.pack(4, code, len(raw)) + raw


PROBE = b"\x05"


def parse_frame(frame: bytes) -> list[Part]:
    """The parts of a frame; raises `Malformed`."""
    parts: list[Part] = []
    at, end = 0, len(frame)
    try:
        while at < end:
            kind = frame[at]
            if kind == 2:
                _, number, length = _FRAGMENT.unpack_from(frame, at)
                data, at = _data(frame, at + _FRAGMENT.size, length & ~_LAST)
                parts.append(Fragment(number, length >= _LAST, data))
            elif kind == 1:
                _, first, bits = _ACK.unpack_from(frame, at)
                at += _ACK.size
                parts.append(Ack(first, int.from_bytes(bits, "little")))
            elif kind == 3:
                _, message, index, last, length = _PIECE.unpack_from(frame, at)
                data, at = _data(frame, at + _PIECE.size, length)
                parts.append(Piece(message, index, last, data))
            elif kind == 4:
                _, code, length = _CLOSE.unpack_from(frame, at)
                at += _CLOSE.size + length
                if at > end:
                    raise Malformed("a frame is cut short")
                parts.append(Close(code, frame[at - length : at].decode(errors="replace")))
            elif kind == 5:
                at += 1
                parts.append(Probe())
            else:
                break
    except struct.error:
        raise Malformed("a frame is cut short") from None
    return parts


def _data(frame: bytes, start: int, length: int) -> tuple[bytes, int]:
    """`length` bytes from `start`, and where they end."""
    stop = start + length
    if length == 0 or stop > len(frame):
        raise Malformed("a frame has a part without data" if length == 0 else "a frame is cut short")
    return frame[start:stop], stop
