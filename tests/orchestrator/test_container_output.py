"""A container's output is taken apart as the engine sends it, and each entry is taken once over all connections."""

from __future__ import annotations

import asyncio
import struct
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from tests.polling import eventually
from tipoff_launcher.backends.docker.container_log import ContainerLog, ContainerLogs
from tipoff_launcher.backends.docker.engine import EngineUnavailable, open_engine
from tipoff_launcher.backends.docker.output import Frames, Position, TerminalEntries
from tipoff_shared.errors import Malformed

SECOND = 1_000_000_000
PART = 16 * 1024
START = 1_800_000_000 * SECOND


def stamp(at: int) -> bytes:
    """As the engine writes it."""
    return (
        datetime.fromtimestamp(at // SECOND, UTC).strftime(f"%Y-%m-%dT%H:%M:%S.{at % SECOND:09d}Z").encode()
    )


def entry(at: int, output: bytes) -> bytes:
    return stamp(at) + b" " + output


def frame(data: bytes, stream: int = 1) -> bytes:
    return struct.pack(">B3xL", stream, len(data)) + data


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found = []
    for size in sizes:
        found.append(data[:size])
        data = data[size:]
    return [*found, data]


SIZES = st.lists(st.integers(0, 60), max_size=30)


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=80)), max_size=20), SIZES)
def test_frames_are_found_however_they_arrive(sent: list[tuple[int, bytes]], sizes: list[int]) -> None:
    """Binary output, empty frames, both streams."""
    frames = Frames()
    data = b"".join(frame(output, stream) for stream, output in sent)
    assert [found for piece in pieces(data, sizes) for found in frames.feed(piece)] == [
        out for _, out in sent
    ]


LINES = st.one_of(
    st.binary(max_size=60).map(lambda data: data.replace(b"\n", b"")),
    st.sampled_from([PART - 1, PART, PART + 1, 2 * PART + 5]).map(lambda length: b"x" * length),
)


@given(st.lists(LINES, max_size=6), st.lists(st.integers(0, 20_000), max_size=10))
@example([b"x" * PART], [PART])
def test_the_output_of_a_terminal_is_found_however_it_arrives(lines: list[bytes], sizes: list[int]) -> None:
    """The time before each part of a long line is taken out as well."""
    data = b""
    for number, line in enumerate(lines):
        whole = line + b"\n"
        for begin in range(0, len(whole), PART):
            data += entry(START + number * SECOND, whole[begin : begin + PART])
    entries, position = TerminalEntries(), Position()
    position.connect()
    found = [each for piece in pieces(data, sizes) for each in entries.feed(piece)] + entries.end()
    assert b"".join(map(position.take, found)) == b"".join(line + b"\n" for line in lines)


@given(st.binary(max_size=300), SIZES)
def test_no_bytes_of_an_engine_do_harm(data: bytes, sizes: list[int]) -> None:
    """They are entries, or they are refused."""
    frames, terminal, position = Frames(), TerminalEntries(), Position()
    position.connect()
    try:
        for piece in pieces(data, sizes):
            list(map(position.take, frames.feed(piece)))
    except Malformed:
        pass
    taken = [each for piece in pieces(data, sizes) for each in terminal.feed(piece)] + terminal.end()
    assert b"".join(taken) == data
    list(map(position.take, taken))
    assert Position.decode(position.encode()).encode() == position.encode()


@given(st.binary(max_size=60))
def test_a_position_is_read_or_refused(data: bytes) -> None:
    try:
        Position.decode(data)
    except Malformed:
        return


@pytest.mark.parametrize(
    ("text", "since"),
    [
        ("2026-11-30T20:00:00.000000007Z", "1796068800.000000007"),
        ("2026-11-30T20:00:00Z", "1796068800.000000000"),
        ("2026-11-30T21:30:00.5+01:30", "1796068800.500000000"),
    ],
)
def test_the_engine_is_asked_from_the_last_time_on(text: str, since: str) -> None:
    """Docker's times have nine digits and end in Z; other engines write RFC 3339 otherwise."""
    position = Position()
    assert position.connect() == ""
    assert position.take(text.encode() + b" hello\n") == b"hello\n"
    later = position.take(entry(1_796_168_800 * SECOND, b"much later\n"))
    assert later == b"much later\n"
    # Everything up to the overlap is past, so the floor is just behind the first entry.
    whole, part = since.split(".")
    assert position.connect() == f"{whole}.{int(part) + 1:09d}"


def since_of(text: str) -> int:
    whole, _, part = text.partition(".")
    return int(whole or 0) * SECOND + int(part or 0)


ENTRIES = st.lists(st.integers(-5, 40).map(lambda n: n * SECOND // 20), max_size=80)
"""Nanoseconds from one entry to the next: some at the same time, some a little in the past."""


@given(ENTRIES, st.lists(st.tuples(st.integers(0, 80), st.booleans()), max_size=6))
def test_each_entry_is_taken_once_over_all_connections(
    steps: list[int], connections: list[tuple[int, bool]]
) -> None:
    """Wherever a connection breaks, and although the launcher starts again, which knows what was written down only."""
    log: list[bytes] = []
    times: list[int] = []
    at = START
    for number, step in enumerate(steps):
        at = max(at + step, START)
        times.append(at)
        log.append(b"%d\n" % number)
    position, taken = Position(), []
    for count, restart in [*connections, (1000, False)]:
        if restart:
            position = Position.decode(position.encode())
        since = since_of(position.connect())
        there = [(when, output) for when, output in zip(times, log, strict=True) if when >= since]
        taken += [got for when, output in there[:count] if (got := position.take(entry(when, output)))]
    assert taken == log


def test_an_entry_that_the_engine_repeats_is_taken_once() -> None:
    """So it does when it moves its file aside. Equal lines, and equal parts of a line, are no repetition."""
    position = Position()
    position.connect()
    same, part = entry(START, b"same\n"), entry(START + 2, b"x")
    sent = [same, same, entry(START + 1, b"same\n"), part, part, entry(START + 2, b"\n")]
    assert b"".join(map(position.take, sent)) == b"same\nsame\nxx\n"
    position.connect()
    assert b"".join(map(position.take, [*sent[1:], sent[-1], entry(START + 3, b"new\n")])) == b"new\n"


def test_a_position_stays_small() -> None:
    """Whatever a container writes."""
    position = Position()
    position.connect()
    for number in range(5000):
        position.take(entry(START + number, b"x"))
    assert len(position.encode()) < 64 * 1024


# The log, from an engine that breaks off.


class Recorded:
    """An engine with one container's output; `breaks`: after how many bytes each connection breaks."""

    def __init__(self, lines: list[bytes], breaks: list[int]) -> None:
        self.lines = lines
        self.breaks = breaks
        self.connections = 0

    async def output(self, id: str, *, since: str, follow: bool) -> AsyncGenerator[bytes]:
        self.connections += 1
        first = since_of(since)
        entries = [(START + n * SECOND // 4, line) for n, line in enumerate(self.lines)]
        data = b"".join(frame(entry(at, line)) for at, line in entries if at >= first)
        if self.breaks:
            yield data[: self.breaks.pop(0)]
            raise EngineUnavailable("cut", retryable=True)
        yield data


def make(engine: Any, path: Path, *, max_bytes: int = 100_000, rate: float = 1e9) -> ContainerLog:
    return ContainerLogs(engine, max_bytes=max_bytes, rate=rate).log("c" * 64, path, lambda: None)


async def finish(log: ContainerLog) -> None:
    while True:
        try:
            return await log.finish(terminal=False)
        except EngineUnavailable:
            pass


@pytest.mark.parametrize("breaks", [[], [1], [100], [100, 3, 250], [399, 400, 401]])
async def test_a_log_is_whole_although_connections_break(tmp_path: Path, breaks: list[int]) -> None:
    """Each line is in it once."""
    lines = [b"line %d\n" % n for n in range(50)]
    path = tmp_path / "server.log"
    async with make(Recorded(lines, breaks), path) as log:
        await finish(log)
    assert path.read_bytes() == b"".join(lines)


@pytest.mark.parametrize("copied", [0, 1, 37, 300, 1500])
async def test_a_launcher_that_was_killed_leaves_a_log_that_the_next_one_completes(
    tmp_path: Path, copied: int
) -> None:
    """What it wrote after it saved its position is not written again."""
    lines = [b"line %d\n" % n for n in range(50)]
    path = tmp_path / "server.log"
    async with make(Recorded(lines[:10], []), path) as log:
        await finish(log)
    saved = (tmp_path / ".server.log.position").read_bytes()
    killed = make(Recorded(lines, [copied]), path)
    async with killed:
        with pytest.raises(EngineUnavailable):
            await killed.finish(terminal=False)
    (tmp_path / ".server.log.position").write_bytes(saved)  # as a kill leaves it
    async with make(Recorded(lines, []), path) as log:
        await finish(log)
    assert path.read_bytes() == b"".join(lines)


async def test_a_copy_that_an_earlier_release_left_is_replaced(tmp_path: Path) -> None:
    """It wrote the log at the end, without a position."""
    path = tmp_path / "server.log"
    path.write_bytes(b"half of li")
    async with make(Recorded([b"line\n"], []), path) as log:
        await finish(log)
    assert path.read_bytes() == b"line\n"


@pytest.mark.parametrize("output", [b"x" * PART, b"\0\xff\x1b[2J" * 100 + b"\n", b"\n"])
async def test_a_log_keeps_its_limit(tmp_path: Path, output: bytes) -> None:
    """Without a newline for ever, binary, or lines without end: what is missing is said."""
    path = tmp_path / "server.log"
    most = 20_000
    async with make(
        Recorded([output] * (400_000 // len(output) // 8), []), path, max_bytes=most, rate=1000
    ) as log:
        await finish(log)
        assert path.stat().st_size <= most
        assert (tmp_path / "server.log.1").stat().st_size <= most
    assert b"bytes of output are missing here" in path.read_bytes()


# Many containers on one engine.


@asynccontextmanager
async def silent_engine(directory: Path, following: list[str]) -> AsyncIterator[str]:
    """An engine whose containers are silent: its address. `following` gets the ids of those that are followed."""

    async def logs(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        following.append(request.match_info["id"])
        await asyncio.Event().wait()
        return response

    async def version(request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41", "Version": "test"})

    app = web.Application()
    app.router.add_get("/version", version)
    app.router.add_get("/v1.41/version", version)
    app.router.add_get("/v1.41/containers/{id}/logs", logs)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.UnixSite(runner, str(directory / "engine.sock")).start()
    try:
        yield f"unix://{directory}/engine.sock"
    finally:
        await runner.cleanup()


async def test_followed_containers_keep_no_other_call_waiting(tmp_path: Path) -> None:
    """Each has a connection of its own, also where there are more than an HTTP client's usual hundred."""
    following: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tipoff-engine-") as directory:
        async with (
            silent_engine(Path(directory), following) as host,
            open_engine(host) as engine,
            AsyncExitStack() as stack,
        ):
            logs = ContainerLogs(engine, max_bytes=1000, rate=1000)
            for number in range(120):
                log = logs.log(f"c{number}", tmp_path / f"{number}.log", lambda: None)
                (await stack.enter_async_context(log)).follow(terminal=False)
            await eventually(lambda: len(following) == 120, "all are followed", 30)
            assert await engine.version() == "test (API 1.41)"
