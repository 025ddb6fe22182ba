"""Carries messages over a lossy path, one side of it: reliable ones in order, and long ones in pieces. Pure.

    send ──> fragments ──frames(now)──> path ──receive(frame, now)──> next_message
                 ^                                    │
                 └────────────── acks ────────────────┘

Reliable messages are cut into fragments, which are numbered through; the other side puts them in order and
acknowledges each. A fragment is sent again when three later ones have arrived, or when its time is over: the measured
round trip with its variation, doubled each time. A window that grows with what arrives and halves on loss bounds what
is on its way. What the application does not take (`next_message`) closes the window, so the sender waits.

Times are seconds of one monotonic clock. The driver calls `frames` after every input and at `next_timeout`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque

from tipoff_shared.errors import Malformed
from tipoff_shared.framing.frame import (
    FRAGMENT_BYTES,
    MAX_FRAME_BYTES,
    PIECE_BYTES,
    PROBE,
    WINDOW,
    Ack,
    Close,
    Fragment,
    Piece,
    Probe,
    encode_ack,
    encode_fragment,
    encode_piece,
    parse_frame,
)
from tipoff_shared.framing.message import MAX_MESSAGE_BYTES
from tipoff_shared.primitives.token_bucket import TokenBucket

MAX_WAITING_BYTES = 1 << 20
"""Bytes of reliable messages that one side may have sent and not heard to have arrived."""
MAX_WAITING_MESSAGES = 1024
ACK_INTERVAL = 0.01
"""Seconds between two acks that have no other part to go with."""
STALLED_AFTER = 15.0
"""Seconds after which a fragment that never arrives ends the connection."""

_FIRST_TIMEOUT = 0.3
_SHORTEST_TIMEOUT = 0.05
_LONGEST_TIMEOUT = 2.0
_FIRST_WINDOW = 16.0
_SMALLEST_WINDOW = 4.0
_OVERTAKEN_BY = 3
"""A fragment is lost when one sent so many numbers after it has arrived."""
_MAX_PIECES = -(-MAX_MESSAGE_BYTES // PIECE_BYTES)
_ASSEMBLIES = 4
"""Unreliable messages of which some pieces have arrived; further ones drop the oldest."""
_NUMBERS = 1 << 32
_PACED_AT_ONCE = 128


class _Sent:
    """A fragment on its way."""

    __slots__ = ("due", "first_sent", "last", "part", "sends", "sent_at")

    def __init__(self, part: bytes, last: bool) -> None:
        self.part = part
        self.last = last
        self.sends = 0
        self.first_sent = self.sent_at = self.due = 0.0


class MessageChannel:
    """One side of a connection. `frames_per_second` paces what is sent (None: the window alone bounds it): a game
    server disconnects a player that floods it."""

    def __init__(self, *, frames_per_second: float | None = None) -> None:
        self.closed: Close | None = None
        """The other side has said that it ends the connection, and why."""
        self.dropped = 0
        """Unreliable messages that found no room in the pace."""
        # out
        self._urgent: list[bytes] = []
        self._queue: deque[_Sent] = deque()
        self._in_flight: OrderedDict[int, _Sent] = OrderedDict()
        self._next_number = 0  # of the queue's first
        self._peer_expects = 0
        self._waiting_bytes = 0
        self._waiting_messages = 0
        self._pace = (
            None if frames_per_second is None else TokenBucket(frames_per_second, float(_PACED_AT_ONCE))
        )
        self._paced_until = -math.inf
        self._looked_at = -math.inf
        """When `frames` was called last."""
        self._next_message_id = 0
        self._probe_at = math.inf
        self._probes = 0
        # the path
        self._smoothed: float | None = None
        self._variation = 0.0
        self._window = _FIRST_WINDOW
        self._threshold = float(WINDOW)
        self._recovered_from = -1  # losses up to this number have been answered by a smaller window
        # in
        self._expected = 0
        self._held: dict[int, Fragment] = {}
        self._parts: list[bytes] = []
        self._size = 0
        self._ack_wanted = False
        self._ack_due = 0.0
        self._last_ack = -math.inf
        self._assemblies: OrderedDict[int, dict[int, bytes]] = OrderedDict()
        self._lasts: dict[int, int] = {}

    # --- out --------------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> bool:
        """Queue a reliable message of 1 to 65536 bytes. False, and nothing is queued, at the bound: 1 MiB or 1024
        messages that have not arrived."""
        if (
            self._waiting_messages >= MAX_WAITING_MESSAGES
            or self._waiting_bytes + len(message) > MAX_WAITING_BYTES
            or self._next_number + len(self._queue) + WINDOW >= _NUMBERS
        ):
            return False
        number = self._next_number + len(self._queue)
        size = len(message)
        for start in range(0, size, FRAGMENT_BYTES):
            last = start + FRAGMENT_BYTES >= size
            part = encode_fragment(number, last, message[start : start + FRAGMENT_BYTES])
            self._queue.append(_Sent(part, last))
            self._waiting_bytes += len(part)
            number += 1
        self._waiting_messages += 1
        return True

    def send_once(self, message: bytes, now: float) -> bool:
        """Send a message of 1 to 65536 bytes that may get lost; one lost piece loses it. False when the pace has no
        room for it: it is dropped."""
        last = (len(message) - 1) // PIECE_BYTES
        if self._pace is not None and self._pace.take(now, amount=last + 1.0) is None:
            self.dropped += 1
            return False
        for index in range(last + 1):
            piece = message[index * PIECE_BYTES : (index + 1) * PIECE_BYTES]
            self._urgent.append(encode_piece(self._next_message_id, index, last, piece))
        self._next_message_id = (self._next_message_id + 1) & 0xFFFF
        return True

    @property
    def idle(self) -> bool:
        """Whether every reliable message has arrived."""
        return not (self._queue or self._in_flight)

    @property
    def rtt(self) -> float | None:
        """Smoothed round trip of fragments in seconds, with the other side's wait for its ack."""
        return self._smoothed

    def stalled(self, now: float) -> bool:
        """Whether the oldest fragment on its way has not arrived for `STALLED_AFTER` seconds."""
        for sent in self._in_flight.values():
            return now - sent.first_sent > STALLED_AFTER
        return False

    def frames(self, now: float) -> list[bytes]:
        """What is to be sent now, each 1 to 1200 bytes."""
        out, self._urgent = self._urgent, []
        frame = bytearray()
        for sent, number in self._due(now):
            if len(frame) + len(sent.part) > MAX_FRAME_BYTES:
                out.append(bytes(frame))
                frame.clear()
            if not frame:
                if self._pace is not None and self._pace.take(now) is None:
                    self._paced_until = now + self._pace.wait(now)
                    break
                if self._ack_wanted:
                    frame += self._ack(now)
            frame += sent.part
            self._mark_sent(sent, number, now)
        if now >= self._probe_at and not frame:
            self._probes += 1
            self._probe_at = now + min(_LONGEST_TIMEOUT, self._timeout() * 2**self._probes)
            frame += PROBE
        if self._ack_wanted and now >= self._ack_due:
            frame += self._ack(now)
        if frame:
            out.append(bytes(frame))
        return out

    def next_timeout(self) -> float:
        """When `frames` must be called next; infinity when nothing is on its way."""
        if self._urgent:
            return -math.inf
        due = -math.inf if self._room() else math.inf
        for sent in self._in_flight.values():
            # One that was due already waits for the window, so for an ack or another's time; or for the pace.
            if sent.due > self._looked_at or self._paced_until > self._looked_at:
                due = min(due, sent.due)
        due = min(max(due, self._paced_until), self._probe_at)
        return min(due, self._ack_due) if self._ack_wanted else due

    def _due(self, now: float) -> list[tuple[_Sent, int]]:
        """Fragments whose time is over, and new ones as far as the window allows. `frames` may not get to all."""
        self._looked_at = now
        if now < self._paced_until:
            return []
        lost = [(sent, number) for number, sent in self._in_flight.items() if sent.due <= now]
        if lost:
            self._lost(lost[0][1])
        due = lost[: max(0, int(self._window) - len(self._in_flight) + len(lost))]
        for number in range(self._next_number, self._next_number + self._room()):
            due.append((self._queue[number - self._next_number], number))
        return due

    def _room(self) -> int:
        """How many new fragments may go."""
        if not self._queue:
            return 0
        room = min(
            int(self._window) - len(self._in_flight),
            self._peer_expects + WINDOW - self._next_number,
            len(self._queue),
        )
        return max(0, room)

    def _mark_sent(self, sent: _Sent, number: int, now: float) -> None:
        if sent.sends == 0:
            self._queue.popleft()
            self._next_number += 1
            self._in_flight[number] = sent
            sent.first_sent = now
        sent.sends += 1
        sent.sent_at = now
        sent.due = now + min(_LONGEST_TIMEOUT, self._timeout() * 2 ** min(sent.sends - 1, 6))

    def _timeout(self) -> float:
        if self._smoothed is None:
            return _FIRST_TIMEOUT
        return min(_LONGEST_TIMEOUT, max(_SHORTEST_TIMEOUT, self._smoothed + 4 * self._variation))

    # --- in ---------------------------------------------------------------------------------------------------

    def receive(self, frame: bytes, now: float) -> list[bytes]:
        """Take in one frame; the unreliable messages that it completes. Look at `next_message` and `closed` then.
        Raises `Malformed`, which ends the connection."""
        messages: list[bytes] = []
        for part in parse_frame(frame):
            if isinstance(part, Fragment):
                self._hold(part, now)
            elif isinstance(part, Ack):
                self._acknowledged(part, now)
            elif isinstance(part, Piece):
                if (message := self._assemble(part)) is not None:
                    messages.append(message)
            elif isinstance(part, Probe):
                self._want_ack(now)
            elif self.closed is None:
                self.closed = part
        return messages

    @property
    def has_message(self) -> bool:
        """Whether `next_message` has something to do."""
        return self._expected in self._held

    def next_message(self, now: float) -> bytes | None:
        """The next reliable message; None when it has not arrived whole. Raises `Malformed` for one over 64 KiB."""
        while (fragment := self._held.pop(self._expected, None)) is not None:
            self._expected += 1
            self._want_ack(now)
            self._size += len(fragment.data)
            if self._size > MAX_MESSAGE_BYTES:
                raise Malformed(f"a message has at most {MAX_MESSAGE_BYTES} bytes")
            self._parts.append(fragment.data)
            if fragment.last:
                message = b"".join(self._parts)
                self._parts.clear()
                self._size = 0
                return message
        return None

    def _hold(self, fragment: Fragment, now: float) -> None:
        ahead = fragment.number - self._expected
        if ahead >= WINDOW:
            raise Malformed("a fragment is beyond the window")
        if ahead >= 0:
            self._held.setdefault(fragment.number, fragment)
        self._want_ack(now)

    def _want_ack(self, now: float) -> None:
        if not self._ack_wanted:
            self._ack_wanted = True
            self._ack_due = max(now, self._last_ack + ACK_INTERVAL)

    def _ack(self, now: float) -> bytes:
        self._ack_wanted = False
        self._last_ack = now
        bits = 0
        for number in self._held:
            bits |= 1 << (number - self._expected)
        return encode_ack(self._expected, bits)

    def _acknowledged(self, ack: Ack, now: float) -> None:
        if ack.next > self._next_number:
            raise Malformed("an ack for what was never sent")
        arrived = [
            number for number in self._in_flight if number < ack.next or ack.bits >> (number - ack.next) & 1
        ]
        if ack.next > self._peer_expects:
            self._peer_expects = ack.next
            self._probes = 0
        for number in arrived:
            sent = self._in_flight.pop(number)
            self._waiting_bytes -= len(sent.part)
            self._waiting_messages -= sent.last
            if sent.sends == 1 and number == arrived[-1]:  # sent again, nobody knows which one arrived
                self._measured(now - sent.sent_at)
        if arrived:
            grown = len(arrived) if self._window < self._threshold else len(arrived) / self._window
            self._window = min(float(WINDOW), self._window + grown)
            for number, sent in self._in_flight.items():
                if number > arrived[-1] - _OVERTAKEN_BY:
                    break
                if sent.sends == 1:
                    sent.due = min(sent.due, now)
        # All has arrived, and is not taken: the ack that opens the window again may get lost.
        closed = self._queue and not self._in_flight and not self._room()
        if not closed:
            self._probe_at = math.inf
        elif self._probe_at == math.inf:
            self._probe_at = now + self._timeout()

    def _measured(self, sample: float) -> None:
        """RFC 6298, section 2."""
        if self._smoothed is None:
            self._smoothed, self._variation = sample, sample / 2
        else:
            self._variation += (abs(sample - self._smoothed) - self._variation) / 4
            self._smoothed += (sample - self._smoothed) / 8

    def _lost(self, number: int) -> None:
        """Halve the window, once for everything that was on its way at the time."""
        if number > self._recovered_from:
            self._recovered_from = self._next_number - 1
            self._window = self._threshold = max(_SMALLEST_WINDOW, self._window / 2)

    def _assemble(self, piece: Piece) -> bytes | None:
        if piece.place > piece.last or piece.last >= _MAX_PIECES:
            raise Malformed("a piece is beyond its message's end")
        pieces = self._assemblies.get(piece.message)
        if pieces is None or self._lasts[piece.message] != piece.last:
            pieces = self._assemblies[piece.message] = {}
            self._lasts[piece.message] = piece.last
            if len(self._assemblies) > _ASSEMBLIES:
                oldest, _ = self._assemblies.popitem(last=False)
                del self._lasts[oldest]
        pieces[piece.place] = piece.data
        if len(pieces) <= piece.last:
            return None
        del self._assemblies[piece.message], self._lasts[piece.message]
        message = b"".join(pieces[index] for index in range(piece.last + 1))
        if len(message) > MAX_MESSAGE_BYTES:
            raise Malformed(f"a message has at most {MAX_MESSAGE_BYTES} bytes")
        return message
