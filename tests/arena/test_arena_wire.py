"""The arena's messages: what goes in comes out, and hostile bytes only ever raise `WireError`."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tipoff_arena import wire
from tipoff_arena.arena_map import standard_arena

SQUARES = st.lists(
    st.builds(
        wire.Square,
        number=st.integers(0, 0xFFFF),
        x=st.integers(0, 0xFFFF).map(lambda n: n / wire.SCALE),
        y=st.integers(0, 0xFFFF).map(lambda n: n / wire.SCALE),
        last_input=st.integers(0, 0xFFFF),
        flags=st.integers(0, 255),
    ),
    max_size=wire.MAX_SQUARES,
)


@given(tick=st.integers(0, 2**32 - 1), squares=SQUARES)
@settings(max_examples=50, deadline=None)
def test_a_snapshot_comes_out_as_it_went_in(tick: int, squares: list[wire.Square]) -> None:
    """All positions that the wire can hold."""
    assert wire.parse_server(wire.encode_snapshot(tick, squares)) == wire.Snapshot(tick, tuple(squares))


@pytest.mark.parametrize("count", [64, wire.MAX_SQUARES])
def test_a_snapshot_fits_into_one_datagram(count: int) -> None:
    """1200 bytes are the most a payload may have."""
    squares = [wire.Square(n, 63.9, 63.9, 0xFFFF, 1) for n in range(count)]
    assert len(wire.encode_snapshot(2**32 - 1, squares)) <= wire.MAX_MESSAGE


def test_the_welcome_describes_the_map() -> None:
    """Who I am, how fast, and every wall."""
    arena = standard_arena()
    welcome = wire.parse_server(wire.encode_welcome(7, arena, 30.0))
    assert welcome == wire.Welcome(7, 30.0, arena.speed, arena.size, arena.width, arena.height, arena.walls)


@given(sequence=st.integers(0, 2**32 - 1), held=st.integers(0, 15))
def test_an_input_comes_out_as_it_went_in(sequence: int, held: int) -> None:
    assert wire.parse_client(wire.encode_input(sequence, held)) == wire.InputMessage(sequence, held)


@given(data=st.binary(max_size=64) | st.binary(min_size=1, max_size=1300))
@settings(max_examples=400, deadline=None)
def test_hostile_bytes_only_raise_wire_errors(data: bytes) -> None:
    """From clients and from servers."""
    for parse in (wire.parse_client, wire.parse_server):
        with contextlib.suppress(wire.WireError):
            parse(data)


@given(head=st.sampled_from([wire.WELCOME, wire.SNAPSHOT]), data=st.binary(max_size=400))
@settings(max_examples=400, deadline=None)
def test_damaged_server_messages_only_raise_wire_errors(head: int, data: bytes) -> None:
    """Bytes that at least begin like a message."""
    with contextlib.suppress(wire.WireError):
        wire.parse_server(bytes((head,)) + data)
