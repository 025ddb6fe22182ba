"""Encodes and parses the arena's messages: little-endian, fixed layout, for `struct` here and `DataView` in a browser.

    client -> server
      HELLO     u8 1 | u8 wire version                        "tell me who I am"; repeated until WELCOME comes
      INPUT     u8 2 | u32 sequence | u8 keys held            sent at every change and several times a second
    server -> client
      WELCOME   u8 17 | u8 wire version | u16 your number | f32 ticks per second | f32 speed | f32 size
                | u16 width | u16 height | u8 walls | per wall u16 left, top, right, bottom
      SNAPSHOT  u8 18 | u32 tick | u8 squares | per square u16 number, u16 x, u16 y, u16 last input, u8 flags

Lengths on the map are u16 in 1/1024 unit (so a map is at most 63.99 units wide); speed is units per second.
"last input" is the low half of the sequence number of the newest input the server has applied: its sender sees how
long the way to the server and back takes. A snapshot of 64 squares has 582 bytes, one of the allowed 128 has 1158, so
each fits into one datagram of 1200.

Everything that arrives is hostile until it is parsed: whatever the bytes, the outcome is a message or `WireError`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from tipoff_arena.rules import Arena, Rect

VERSION = 1
SCALE = 1024
MAX_SQUARES = 128
MAX_WALLS = 128
MAX_MESSAGE = 1200
BOT = 1
"""Flag of a square that no player steers."""

HELLO, INPUT, WELCOME, SNAPSHOT = 1, 2, 17, 18

_HELLO = struct.Struct("<BB")
_INPUT = struct.Struct("<BIB")
_WELCOME = struct.Struct("<BBHfffHHB")
_WALL = struct.Struct("<HHHH")
_SNAPSHOT = struct.Struct("<BIB")
_SQUARE = struct.Struct("<HHHHB")


class WireError(ValueError):
    """The bytes are not a message of the arena; the text says why."""


class HelloMessage(NamedTuple):
    """A client asks for the WELCOME."""

    version: int


class InputMessage(NamedTuple):
    """`held` is an `Input`; `sequence` counts the sender's inputs up to 2^32 - 1 and rises by any amount."""

    sequence: int
    held: int


class Welcome(NamedTuple):
    """The player's number, the speeds and the map; lengths are in units."""

    number: int
    tick_rate: float
    speed: float
    size: float
    width: float
    height: float
    walls: tuple[Rect, ...]


class Square(NamedTuple):
    """`x`, `y` are the square's middle in units; `last_input` is the low 16 bits of a sequence number."""

    number: int
    x: float
    y: float
    last_input: int = 0
    flags: int = 0

    @property
    def is_bot(self) -> bool:
        """Whether no player steers it."""
        return bool(self.flags & BOT)


class Snapshot(NamedTuple):
    """Every square at one tick of the server."""

    tick: int
    squares: tuple[Square, ...]


ClientMessage: TypeAlias = HelloMessage | InputMessage
ServerMessage: TypeAlias = Welcome | Snapshot


def encode_hello() -> bytes:
    """A HELLO."""
    return _HELLO.pack(HELLO, VERSION)


def encode_input(sequence: int, held: int) -> bytes:
    """An INPUT; `held` is an `Input`."""
    return _INPUT.pack(INPUT, sequence & 0xFFFFFFFF, held & 15)


def parse_client(data: bytes) -> ClientMessage:
    """What a client sent; raises `WireError`."""
    if len(data) == _INPUT.size and data[0] == INPUT:
        _, sequence, held = _INPUT.unpack(data)
        if held > 15:
            raise WireError(f"keys {held:#x}: only the lowest four bits mean something")
        return InputMessage(sequence, held)
    if len(data) == _HELLO.size and data[0] == HELLO:
        if data[1] != VERSION:
            raise WireError(f"wire version {data[1]}; this is version {VERSION}")
        return HelloMessage(data[1])
    raise WireError(f"{len(data)} bytes that are neither HELLO nor INPUT")


def encode_welcome(number: int, arena: Arena, tick_rate: float) -> bytes:
    """The WELCOME of the player with this number."""
    head = _WELCOME.pack(
        WELCOME,
        VERSION,
        number,
        tick_rate,
        arena.speed,
        arena.size,
        _to_wire(arena.width),
        _to_wire(arena.height),
        len(arena.walls),
    )
    return head + b"".join(_WALL.pack(*map(_to_wire, wall)) for wall in arena.walls)


def encode_snapshot(tick: int, squares: Iterable[Square]) -> bytes:
    """A SNAPSHOT of at most `MAX_SQUARES`. All players get the same one and find themselves by number."""
    pack, scale = _SQUARE.pack, SCALE
    parts = [
        pack(number, round(x * scale), round(y * scale), last_input & 0xFFFF, flags)
        for number, x, y, last_input, flags in squares
    ]
    if len(parts) > MAX_SQUARES:
        raise ValueError(f"{len(parts)} squares; a snapshot holds {MAX_SQUARES}")
    return _SNAPSHOT.pack(SNAPSHOT, tick & 0xFFFFFFFF, len(parts)) + b"".join(parts)


def parse_server(data: bytes) -> ServerMessage:
    """What the server sent; raises `WireError`."""
    if not data or len(data) > MAX_MESSAGE:
        raise WireError(f"{len(data)} bytes; a message has 1 to {MAX_MESSAGE}")
    if data[0] == SNAPSHOT:
        return _parse_snapshot(data)
    if data[0] == WELCOME:
        return _parse_welcome(data)
    raise WireError(f"a message of unknown kind {data[0]}")


def _parse_snapshot(data: bytes) -> Snapshot:
    if len(data) < _SNAPSHOT.size:
        raise WireError("a snapshot cut short")
    _, tick, count = _SNAPSHOT.unpack_from(data)
    if len(data) != _SNAPSHOT.size + count * _SQUARE.size:
        raise WireError(f"a snapshot of {count} squares does not have {len(data)} bytes")
    return Snapshot(
        tick,
        tuple(
            Square(number, x / SCALE, y / SCALE, last_input, flags)
            for number, x, y, last_input, flags in _SQUARE.iter_unpack(data[_SNAPSHOT.size :])
        ),
    )


def _parse_welcome(data: bytes) -> Welcome:
    if len(data) < _WELCOME.size:
        raise WireError("a welcome cut short")
    _, version, number, tick_rate, speed, size, width, height, walls = _WELCOME.unpack_from(data)
    if version != VERSION:
        raise WireError(f"the server speaks wire version {version}; this is version {VERSION}")
    if len(data) != _WELCOME.size + walls * _WALL.size:
        raise WireError(f"a welcome with {walls} walls does not have {len(data)} bytes")
    if not all(math.isfinite(value) and 0 < value < 1e6 for value in (tick_rate, speed, size)):
        raise WireError("a welcome whose tick rate, speed or size is not a positive number")
    return Welcome(
        number,
        tick_rate,
        speed,
        size,
        width / SCALE,
        height / SCALE,
        tuple(
            Rect(left / SCALE, top / SCALE, right / SCALE, bottom / SCALE)
            for left, top, right, bottom in _WALL.iter_unpack(data[_WELCOME.size :])
        ),
    )


def _to_wire(length: float) -> int:
    return round(length * SCALE)
