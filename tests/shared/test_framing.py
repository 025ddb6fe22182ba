"""Messages over a path that loses, doubles, delays and reorders: the channel alone, on a simulated clock."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_shared.errors import Malformed
from tipoff_shared.framing import (
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    CloseCode,
    MessageChannel,
    encode_close,
    parse_frame,
)
from tipoff_shared.framing.channel import MAX_WAITING_BYTES, MAX_WAITING_MESSAGES, STALLED_AFTER
from tipoff_shared.framing.frame import (
    FRAGMENT_BYTES,
    PIECE_BYTES,
    WINDOW,
    Ack,
    Close,
    Fragment,
    Piece,
    Probe,
    encode_ack,
    encode_fragment,
    encode_piece,
)

pytestmark = pytest.mark.row(92)


@dataclass
class Path:
    """A simulated path between two channels. `loss` and `doubled` are shares of frames, times are seconds."""

    seed: int
    loss: float = 0.0
    doubled: float = 0.0
    delay: float = 0.02
    jitter: float = 0.0
    now: float = 100.0
    frames: int = 0
    largest: int = 0
    a: MessageChannel = field(default_factory=MessageChannel)
    b: MessageChannel = field(default_factory=MessageChannel)
    loose: list[bytes] = field(default_factory=list)
    """Unreliable messages that reached b."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._order = itertools.count()
        self._on_their_way: list[tuple[float, int, MessageChannel, bytes]] = []

    def step(self) -> bool:
        """Send what is due, then go on to the next arrival or deadline. False when nothing is left to happen."""
        for side, other in ((self.a, self.b), (self.b, self.a)):
            for frame in side.frames(self.now):
                self.frames += 1
                self.largest = max(self.largest, len(frame))
                for _ in range(1 + (self.random.random() < self.doubled)):
                    if self.random.random() >= self.loss:
                        arrives = self.now + self.delay + self.random.random() * self.jitter
                        heapq.heappush(self._on_their_way, (arrives, next(self._order), other, frame))
        due = min(self.a.next_timeout(), self.b.next_timeout())
        arrival = self._on_their_way[0][0] if self._on_their_way else math.inf
        if min(due, arrival) == math.inf:
            return False
        self.now = max(self.now, min(due, arrival))
        while self._on_their_way and self._on_their_way[0][0] <= self.now:
            _, _, side, frame = heapq.heappop(self._on_their_way)
            messages = side.receive(frame, self.now)
            if side is self.b:
                self.loose += messages
        return True

    def run(self, seconds: float = 300.0) -> list[bytes]:
        """Until nothing is left to happen: the reliable messages that reached b."""
        received: list[bytes] = []
        until = self.now + seconds
        while self.step():
            assert self.now < until, f"not done after {seconds} s of simulated time, seed {self.seed}"
            received += taken(self.b, self.now)
        return received


def taken(channel: MessageChannel, now: float) -> Iterator[bytes]:
    while (message := channel.next_message(now)) is not None:
        yield message


def numbered(count: int, sizes: random.Random) -> list[bytes]:
    """Messages of many sizes that differ."""
    return [
        number.to_bytes(4, "little") * (1 + sizes.choice((0, 1, 10, 300, 1200, 16000)) // 4)
        for number in range(count)
    ]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from((0.0, 0.01, 0.1, 0.3, 0.5)),
    doubled=st.sampled_from((0.0, 0.2)),
    delay=st.sampled_from((0.0001, 0.02, 0.3)),
    jitter=st.sampled_from((0.0, 0.01, 0.5)),
    count=st.integers(1, 60),
)
def test_reliable_messages_arrive_once_and_in_order(
    seed: int, loss: float, doubled: float, delay: float, jitter: float, count: int
) -> None:
    path = Path(seed, loss, doubled, delay, jitter)
    sent = numbered(count, path.random)
    received: list[bytes] = []
    for message in sent:  # some in one go, some while others are on their way
        assert path.a.send(message)
        if path.random.random() < 0.5:
            path.step()
            received += taken(path.b, path.now)
    received += path.run(seconds=3000)
    assert received == sent
    assert path.a.idle
    assert path.largest <= MAX_FRAME_BYTES


@pytest.mark.parametrize("seed", range(5))
def test_both_directions_at_once(seed: int) -> None:
    path = Path(seed, loss=0.1, jitter=0.05)
    there, back = numbered(40, path.random), numbered(40, path.random)
    for one, other in zip(there, back, strict=True):
        assert path.a.send(one)
        assert path.b.send(other)
    seen: tuple[list[bytes], list[bytes]] = ([], [])
    while path.step():
        seen[0].extend(taken(path.b, path.now))
        seen[1].extend(taken(path.a, path.now))
    assert seen == (there, back)


@pytest.mark.parametrize("size", [1, FRAGMENT_BYTES, FRAGMENT_BYTES + 1, PIECE_BYTES, MAX_MESSAGE_BYTES])
def test_a_message_of_any_size_arrives(size: int) -> None:
    path = Path(1)
    message = random.Random(size).randbytes(size)
    assert path.a.send(message)
    assert path.run() == [message]
    assert path.a.send_once(message, path.now)
    path.run()
    assert path.loose == [message]


def test_small_messages_share_frames() -> None:
    path = Path(1)
    for _ in range(WINDOW):
        path.a.send(b"12345678")
    assert len(path.run()) == WINDOW
    assert path.frames <= 16


def test_what_nobody_takes_makes_the_sender_wait_and_an_ack_that_is_lost_ends_no_wait() -> None:
    """The application of b takes nothing for a minute; the ack that opens the window again is lost."""
    path = Path(3)
    sent = [bytes([number]) * FRAGMENT_BYTES for number in range(200)]
    for message in sent:
        assert path.a.send(message)
    until = path.now + 60
    while path.now < until:
        assert path.step(), "the sender has given up"
        assert not path.a.stalled(path.now), "it waits, nothing is lost"
    received = list(taken(path.b, path.now))
    assert len(received) == WINDOW
    assert path.b.frames(path.now + 1)  # lost
    received += path.run()
    assert received == sent


def test_the_bound_is_told_and_room_comes_back() -> None:
    path = Path(4)
    while path.a.send(bytes(MAX_MESSAGE_BYTES)):
        pass
    assert (
        MAX_WAITING_BYTES - 2 * MAX_MESSAGE_BYTES < len(path.run()) * MAX_MESSAGE_BYTES <= MAX_WAITING_BYTES
    )
    for _ in range(MAX_WAITING_MESSAGES):
        assert path.a.send(b"x")
    assert not path.a.send(b"x")
    assert len(path.run()) == MAX_WAITING_MESSAGES
    for _ in range(MAX_WAITING_BYTES // MAX_MESSAGE_BYTES - 1):
        assert path.a.send(bytes(MAX_MESSAGE_BYTES))


def test_what_never_arrives_is_noticed() -> None:
    path = Path(5, loss=1.0)
    path.a.send(b"x")
    start = path.now
    while not path.a.stalled(path.now):
        path.step()
    assert path.now - start < STALLED_AFTER + 5
    assert path.frames < 20, "repetitions become rarer"


def test_repetitions_follow_the_round_trip() -> None:
    """A loss on a short way is made good at once, and none is assumed on a long one."""
    for delay, most in ((0.005, 0.2), (0.25, 2.0)):
        path = Path(6, delay=delay)
        for _ in range(20):
            path.a.send(bytes(FRAGMENT_BYTES))
            assert path.run()
        before, began = path.frames, path.now
        path.a.send(b"lost")
        path.a.frames(path.now)
        assert path.run() == [b"lost"]
        assert path.now - began < most
        assert path.frames - before == 2, "one repetition, one ack"


def test_a_lost_frame_amid_others_is_repeated_before_its_time() -> None:
    path = Path(7, delay=0.1)
    for _ in range(30):
        path.a.send(bytes(FRAGMENT_BYTES))
        path.run()
    path.now += 1
    path.a.send(b"lost")
    path.a.frames(path.now)
    for number in range(3):
        path.a.send(bytes([number]))
        for frame in path.a.frames(path.now):
            path.b.receive(frame, path.now)
        assert not any(b"lost" in frame for frame in path.a.frames(path.now))
    for frame in path.b.frames(path.now + 0.01):
        path.a.receive(frame, path.now + 0.01)
    assert any(b"lost" in frame for frame in path.a.frames(path.now + 0.01))


def test_what_was_sent_twice_measures_no_round_trip() -> None:
    """Its ack may be for either; a wrong sample would make all others be sent twice."""
    path = Path(8, delay=0.25)
    path.a.send(b"x")
    assert path.run() == [b"x"]
    assert path.frames > 2
    assert path.a.rtt is None
    for number in range(20):
        path.now += 1
        path.a.send(bytes([number]))
        path.run()
    assert path.a.rtt is None or path.a.rtt >= 0.5


def test_a_lost_flight_is_not_sent_again_in_one_burst() -> None:
    """The window has halved, once for all of it."""
    path = Path(9, delay=0.05)
    for _ in range(300):
        path.a.send(bytes(FRAGMENT_BYTES))
    path.run()
    for _ in range(200):
        path.a.send(bytes(FRAGMENT_BYTES))
    flight = len(path.a.frames(path.now))
    assert flight >= 64
    for _ in range(2):
        again = 0
        while not again:
            path.now = path.a.next_timeout()
            again = len(path.a.frames(path.now))
        assert flight // 2 - 1 <= again <= flight // 2 + 1
    assert len(path.run()) == 200


def test_a_paced_side_never_sends_more() -> None:
    channel = MessageChannel(frames_per_second=100)
    for _ in range(15):
        channel.send(bytes(MAX_MESSAGE_BYTES))
    frames, now = 0, 0.0
    other = MessageChannel()
    while now < 5.0:
        for frame in channel.frames(now):
            frames += 1
            other.receive(frame, now)
        list(taken(other, now))
        for frame in other.frames(now):
            channel.receive(frame, now)
        now += 0.001
    assert 450 < frames <= 128 + 5 * 100 + 1
    assert not all(channel.send_once(bytes(MAX_MESSAGE_BYTES), now) for _ in range(10))
    assert channel.dropped


@pytest.mark.parametrize("seed", range(10))
def test_long_unreliable_messages_arrive_whole_or_not_at_all(seed: int) -> None:
    path = Path(seed, loss=0.02, jitter=0.1, doubled=0.1)
    sent = [bytes([number]) * 20_000 for number in range(50)]
    for message in sent:
        path.a.send_once(message, path.now)
        path.step()
        path.now += 0.03
    path.run()
    assert set(path.loose) <= set(sent)
    assert len(path.loose) > 5


def test_a_close_says_why() -> None:
    channel = MessageChannel()
    channel.receive(encode_close(CloseCode.KICKED, "ä" * 100), 0.0)
    assert channel.closed == Close(4000, "ä" * 61)


def test_parts_are_read_as_they_were_written() -> None:
    frame = (
        encode_ack(7, 1 << 127 | 1)
        + encode_fragment(2**32 - 1, True, b"abc")
        + encode_fragment(8, False, b"d")
        + encode_piece(65535, 3, 54, b"e")
        + b"\x05"
        + encode_close(1001, "the server ends")
    )
    assert parse_frame(frame) == [
        Ack(7, 1 << 127 | 1),
        Fragment(2**32 - 1, True, b"abc"),
        Fragment(8, False, b"d"),
        Piece(65535, 3, 54, b"e"),
        Probe(),
        Close(1001, "the server ends"),
    ]


def test_a_part_of_a_later_version_is_no_error() -> None:
    """What stands before it counts."""
    assert parse_frame(b"\x05\x63 of a later version") == [Probe()]


@pytest.mark.parametrize(
    "frame",
    [
        encode_fragment(WINDOW, True, b"x"),
        encode_ack(1, 0),
        encode_piece(1, 2, 1, b"x"),
        encode_piece(1, 0, 55, b"x"),
        encode_fragment(0, True, b"x")[:-1],
        encode_piece(1, 0, 1, b"x")[:-1],
        b"\x02\0\0\0\0\0\0",
        encode_ack(0, 0)[:-1],
        encode_close(1000, "bye")[:-1],
    ],
)
def test_what_no_channel_sends_is_refused(frame: bytes) -> None:
    with pytest.raises(Malformed):
        MessageChannel().receive(frame, 0.0)


def test_a_message_without_an_end_is_refused() -> None:
    """Before it fills the memory."""
    channel = MessageChannel()
    with pytest.raises(Malformed, match="65536"):  # noqa: PT012  # whichever of them is the first beyond
        for number in range(100):
            channel.receive(encode_fragment(number, False, bytes(FRAGMENT_BYTES)), 0.0)
            list(taken(channel, 0.0))


def test_pieces_without_end_fill_no_memory() -> None:
    channel = MessageChannel()
    tracemalloc.start()
    try:
        for number in range(5_000):
            channel.receive(encode_piece(number & 0xFFFF, 0, 54, bytes(PIECE_BYTES)), 0.0)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()
    assert channel.receive(encode_piece(20_000, 0, 0, b"whole"), 0.0) == [b"whole"]


def test_pieces_of_one_number_that_contradict_each_other_are_no_message() -> None:
    channel = MessageChannel()
    assert channel.receive(encode_piece(1, 5, 5, b"x"), 0.0) == []
    assert channel.receive(encode_piece(1, 0, 1, b"new"), 0.0) == []
    assert channel.receive(encode_piece(1, 1, 1, b"er"), 0.0) == [b"newer"]


HEADERS = st.sampled_from(
    (b"", b"\x01", b"\x02", b"\x03", b"\x04", b"\x05", encode_ack(0, 0), encode_fragment(0, False, b"x"))
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(HEADERS, st.binary(max_size=60)), max_size=20), st.binary(max_size=1200))
def test_hostile_frames_lead_to_malformed_or_nothing(frames: list[tuple[bytes, bytes]], long: bytes) -> None:
    """And what is sent in answer is bounded."""
    channel = MessageChannel()
    channel.send(b"ours" * 1000)
    channel.frames(0.0)
    now = 0.0
    for frame in [head + tail for head, tail in frames] + [long]:
        try:
            channel.receive(frame, now)
            list(taken(channel, now))
        except Malformed:
            return
        answer = channel.frames(now)
        assert all(0 < len(one) <= MAX_FRAME_BYTES for one in answer)
        assert len(answer) <= WINDOW
        now += 0.02
