"""Takes the engine's stream of a container's output apart, and knows what of it has been read before. Pure.

With timestamps, the engine sends entries: a line, or a part of one longer than 16 KiB.

    multiplexed   header (stream, 3 zero bytes, length as big-endian 32 bits), time, space, output
    terminal      time, space, output; the entries follow each other without a header

The parts of a line share its time. Times of the two streams may be out of order by a little, so a position is not one
time: it is the times of the newest entries, and how many entries each has. A later connection asks for the entries
since the oldest of these times, and skips as many of each as were read.
"""

from __future__ import annotations

import struct
from calendar import timegm

import msgspec

from tipoff_shared.errors import Malformed

_HEADER = struct.Struct(">B3xL")
_LARGEST = 4 * 1024 * 1024
"""Bytes of an entry. Engines send 16 KiB, or 1 MiB by some log drivers."""
_PART = 16 * 1024
"""Bytes after which the engine divides a line."""
_STAMP = 64
"""Characters within which the time of an entry ends."""
_OVERLAP = 1_000_000_000
"""Nanoseconds by which times may be out of order."""
_MOST = 1024
"""Different times of a position, however many entries an overlap has."""
_SECOND = 1_000_000_000


class Frames:
    """The entries of a multiplexed stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The entries that are complete with `data`. Raises `Malformed`."""
        buffer = self._buffer
        buffer += data
        found: list[bytes] = []
        at = 0
        while len(buffer) - at >= _HEADER.size:
            kind, length = _HEADER.unpack_from(buffer, at)
            if kind > 3 or length > _LARGEST:
                raise Malformed("the engine's stream of a container's output cannot be read")
            end = at + _HEADER.size + length
            if len(buffer) < end:
                break
            found.append(bytes(buffer[at + _HEADER.size : end]))
            at = end
        del buffer[:at]
        return found

    def end(self) -> list[bytes]:
        """The entries that are complete because the stream has ended: none, as each has its length."""
        self._buffer.clear()
        return []


class TerminalEntries:
    """The entries of a terminal's stream."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The entries that are complete with `data`."""
        self._buffer += data
        return self._take(ended=False)

    def end(self) -> list[bytes]:
        """The entries that are complete because the stream has ended."""
        found = self._take(ended=True)
        self._buffer.clear()
        return found

    def _take(self, *, ended: bool) -> list[bytes]:
        buffer = self._buffer
        found: list[bytes] = []
        at = 0
        while at < len(buffer):
            space = buffer.find(b" ", at, at + _STAMP)
            if space < 0 and len(buffer) - at < _STAMP and not ended:
                break
            begin = space + 1 if space >= 0 else at
            newline = buffer.find(b"\n", begin, begin + _PART)
            if newline >= 0:
                end = newline + 1
            elif len(buffer) - begin >= _PART:
                end = begin + _PART
            elif ended:
                end = len(buffer)
            else:
                break
            found.append(bytes(buffer[at:end]))
            at = end
        del buffer[:at]
        return found


class Position:
    """How far the output of one container has been read, over many connections."""

    def __init__(self) -> None:
        self._floor = 0
        """Entries before this time are not asked for again."""
        self._seen: dict[int, int] = {}
        """Time -> entries read, from the floor on."""
        self._again: dict[int, int] = {}
        """Time -> entries that this connection repeats."""
        self._newest = 0
        self._open = 0
        """The time of a line of which only parts have been read; 0 between lines."""
        self._last = b""
        """The newest entry. Engines repeat it when they move their own file aside (seen with 20.10)."""
        self._minute = b""
        self._minute_at = 0

    @classmethod
    def decode(cls, data: bytes) -> Position:
        """The position that `encode` returned. Raises `Malformed`."""
        try:
            floor, seen = msgspec.json.decode(data, type=tuple[int, list[tuple[int, int]]])
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise Malformed("no position in a container's output") from exc
        found = cls()
        found._floor, found._seen = floor, dict(seen[:_MOST])
        found._newest = max(found._seen, default=0)
        return found

    def encode(self) -> bytes:
        """This position as JSON."""
        return msgspec.json.encode((self._floor, list(self._seen.items())))

    def connect(self) -> str:
        """Begin a connection. Returns the `since` to ask the engine for: Unix seconds; "" for everything."""
        self._again = dict(self._seen)
        self._last = b""
        since = max(self._floor, 0)
        return f"{since // _SECOND}.{since % _SECOND:09d}" if since else ""

    def take(self, entry: bytes) -> bytes:
        """The output in `entry`; b"" where it has been read before."""
        space = entry.find(b" ", 0, _STAMP)
        at = self._time(entry[:space]) if space > 0 else -1
        if at < 0:
            return entry  # of an engine that sends no times
        if entry == self._last and entry.endswith(
            b"\n"
        ):  # two lines have different times, parts of one may not
            return b""
        self._last = entry
        if again := self._again.get(at, 0):
            self._again[at] = again - 1
            return b""
        if at >= self._floor:
            self._seen[at] = self._seen.get(at, 0) + 1
            self._newest = max(self._newest, at)
        if not entry.endswith(b"\n"):
            self._open = at
        elif self._open == at:
            self._open = 0
        self._forget_old()
        return entry[space + 1 :]

    def _forget_old(self) -> None:
        while self._seen:
            first = next(iter(self._seen))
            old = first < self._newest - _OVERLAP and first != self._open
            if not old and len(self._seen) <= _MOST:
                break
            del self._seen[first]
            self._floor = max(self._floor, first + 1)

    def _time(self, text: bytes) -> int:
        """Nanoseconds of RFC 3339 in `text`, since 1970; -1 when it is no time."""
        try:
            if text[:16] != self._minute:
                self._minute_at = timegm(
                    (
                        *(int(text[0:4]), int(text[5:7]), int(text[8:10])),
                        *(int(text[11:13]), int(text[14:16]), 0),
                    )
                )
                self._minute = text[:16]
            if text[4:5] != b"-" or text[10:11] != b"T" or text[16:17] != b":":
                return -1
            at = (self._minute_at + int(text[17:19])) * _SECOND
            rest = text[19:]
            if rest.endswith(b"Z"):
                zone = 0
                rest = rest[:-1]
            else:
                sign = -1 if rest[-6:-5] == b"-" else 1
                zone = sign * (int(rest[-5:-3]) * 3600 + int(rest[-2:]) * 60)
                rest = rest[:-6]
            if rest:
                at += int(rest[1:10].ljust(9, b"0"))
            at -= zone * _SECOND
            return at if at < 2**63 else -1
        except (ValueError, OverflowError):
            return -1
