"""The logs of processes keep their limit at every moment, and no end of a writer or of its owner disturbs a process."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.polling import eventually
from tipoff_shared.log_writer.client import LogWriter, pipe_of
from tipoff_shared.log_writer.process import LOCK, BoundedLog

pytestmark = pytest.mark.row(79)

MISSING = re.compile(rb"\n?\[tipoff: (\d+) bytes of output are missing here: [^\]]*\]\n")

TICKER = """
import itertools, os, sys, time
for number in itertools.count():
    os.write(1, b"%d\\n" % number)
    time.sleep(0.001)
"""


@contextmanager
def running(logs: LogWriter, path: Path, script: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process whose output goes to the log `path`."""
    output = logs.open(path)
    with subprocess.Popen([sys.executable, "-c", script], stdout=output, stderr=output) as process:
        os.close(output)
        try:
            yield process
        finally:
            process.kill()


def size_of(path: Path) -> int:
    """Of a log and its previous part, in bytes."""
    return sum(part.stat().st_size for part in (path, path.with_name(path.name + ".1")) if part.exists())


def numbers_in(path: Path) -> list[int]:
    """What `TICKER` has written completely."""
    return [int(line) for line in path.read_bytes().rpartition(b"\n")[0].split()] if path.exists() else []


async def more_numbers(path: Path, count: int) -> None:
    """Wait until so many more are in the log."""
    before = len(numbers_in(path))
    await eventually(lambda: len(numbers_in(path)) > before + count)


def writer_of(root: Path) -> int:
    """The pid of the writer, which holds the lock."""
    return int((root / LOCK).read_text().split()[0])


# The bound. Pure, but for the files.


@given(
    steps=st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 3)), max_size=40),
    rate=st.integers(1, 2000),
)
@settings(max_examples=60, deadline=None)
def test_a_log_is_never_larger_than_its_limit_and_accounts_for_every_byte(
    steps: list[tuple[int, float]], rate: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """After each step both files keep the limit. What was written and what is told as missing is what came in."""
    path = tmp_path_factory.mktemp("log") / "server.log"
    log = BoundedLog(str(path), 1000, rate)
    kept: list[bytes] = []  # what reaches the disk, also what is rotated away
    write = os.write

    def spy(fd: int, data: bytes) -> int:
        written = write(fd, data)
        if os.path.samestat(os.fstat(fd), path.stat()):
            kept.append(data[:written])
        return written

    came = 0
    clock = 0.0
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(os, "write", spy)
        for size, pause in steps:
            clock += pause
            log.resume(clock)
            log.take(b"x" * size, clock)
            came += size
            assert path.stat().st_size <= 1000 if path.exists() else True
            assert size_of(path) <= 2000
        log.close()
    written = b"".join(kept)
    missing = sum(int(number) for number in MISSING.findall(written))
    assert MISSING.sub(b"", written).count(b"x") + missing == came


def test_what_a_full_disk_refuses_is_counted_and_the_log_goes_on_when_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log says how much is missing, and why."""
    path = tmp_path / "server.log"
    log = BoundedLog(str(path), 100_000, 50_000)
    log.take(b"before\n", 0)

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as changed:
        changed.setattr(os, "write", full)
        for second in range(1, 4):
            log.take(b"y" * 20_000, second)
            log.resume(second + 0.5)
    assert log.due is not None
    log.resume(log.due)
    log.take(b"after\n", log.due or 5)
    said = path.read_bytes()
    assert said.startswith(b"before\n[tipoff: ")
    assert b"it could not be written: No space left on device" in said
    assert sum(map(int, MISSING.findall(said))) + MISSING.sub(b"", said).count(b"y") == 60_000
    assert said.endswith(b"after\n")


def test_a_log_that_somebody_removes_or_that_was_too_large_before_keeps_its_limit(tmp_path: Path) -> None:
    """It begins anew."""
    path = tmp_path / "server.log"
    path.write_bytes(b"o" * 5000)  # of an earlier release
    log = BoundedLog(str(path), 1000, 1e6)
    log.take(b"a" * 900, 0)
    assert path.read_bytes() == b"a" * 900
    path.unlink()
    log.take(b"b" * 900, 1)
    assert path.read_bytes() == b"b" * 900
    path.with_name("server.log.1").mkdir()  # in the way
    log.take(b"c" * 900, 2)
    assert path.read_bytes() == b"c" * 900


# The process.


async def test_a_flood_fills_its_share_and_no_more_and_its_neighbour_is_written_completely(
    tmp_path: Path,
) -> None:
    """At every look both files keep the limit, while a hundred times as much comes in. The flooder lives."""
    flooder, quiet = tmp_path / "flooder.log", tmp_path / "quiet.log"
    flood = """
        import os, time
        line = b"0123456789" * 100 + b"\\n"
        for _ in range(50):
            os.write(2, line * 1000)
        print("done", flush=True)
        time.sleep(300)
        """
    async with LogWriter(tmp_path, max_bytes=200_000, rate=100_000) as logs:
        with (
            running(logs, flooder, textwrap.dedent(flood)) as process,
            running(logs, quiet, TICKER),
        ):

            def done() -> bool:
                assert size_of(flooder) <= 400_000
                return flooder.exists() and flooder.read_bytes().endswith(b"done\n")

            await eventually(done, timeout=20)
            assert process.poll() is None
            last = len(numbers_in(quiet))
            await eventually(lambda: len(numbers_in(quiet)) > last)
        assert await logs.finished(flooder)
        assert await logs.finished(quiet)
    numbers = numbers_in(quiet)
    assert numbers == list(range(len(numbers)))
    assert b"bytes of output are missing here: more than 100000 bytes a second" in flooder.read_bytes()


async def test_a_killed_writer_is_started_again_and_loses_at_most_what_it_had_in_hand(tmp_path: Path) -> None:
    """One read each time. Meanwhile the output waits in the pipe; the process gets no SIGPIPE."""
    path = tmp_path / "games" / "1" / "server.log"
    path.parent.mkdir(parents=True)
    async with LogWriter(tmp_path) as logs:
        with running(logs, path, TICKER) as process:
            for _ in range(3):
                await more_numbers(path, 20)
                os.kill(writer_of(tmp_path), signal.SIGKILL)
            await more_numbers(path, 20)
            assert process.poll() is None
        assert await logs.finished(path)
        numbers = numbers_in(path)
        steps = [after - before for before, after in itertools.pairwise(numbers)]
        assert min(steps) == 1
        assert sum(step > 1 for step in steps) <= 3
        assert not pipe_of(path).exists()


async def test_the_writer_outlives_its_owner_and_the_next_one_takes_over(tmp_path: Path) -> None:
    """As when a launcher is killed and started again: one log without a gap, and one writer."""
    path = tmp_path / "server.log"
    owner = f"""
        import asyncio, os, subprocess, sys
        from pathlib import Path
        from tipoff_shared.log_writer.client import LogWriter

        async def main():
            async with LogWriter(Path({str(tmp_path)!r})) as logs:
                output = logs.open(Path({str(path)!r}))
                process = subprocess.Popen([sys.executable, "-c", {TICKER!r}], stdout=output)
                print(process.pid, flush=True)
                await asyncio.sleep(300)

        asyncio.run(main())
        """
    owning = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(owner), stdout=subprocess.PIPE
    )
    try:
        assert owning.stdout is not None
        ticker = int(await owning.stdout.readline())
        await eventually(lambda: len(numbers_in(path)) > 20)
    finally:
        owning.kill()
        await owning.communicate()
    first = writer_of(tmp_path)
    await more_numbers(path, 100)
    async with LogWriter(tmp_path) as logs:
        await eventually(lambda: writer_of(tmp_path) != first)
        await more_numbers(path, 100)
        await eventually(lambda: not Path(f"/proc/{first}").exists())
        os.kill(ticker, signal.SIGKILL)
        assert await logs.finished(path)
    numbers = numbers_in(path)
    assert numbers == list(range(len(numbers)))


async def test_a_process_that_is_started_again_at_once_shares_its_log_with_the_one_before(
    tmp_path: Path,
) -> None:
    """Both outputs are complete, and the log keeps its limit."""
    path = tmp_path / "httpd.log"
    async with LogWriter(tmp_path, max_bytes=5_000) as logs:
        outputs: list[int] = []
        for number in range(10):
            outputs.append(logs.open(path))
            os.write(outputs[-1], b"%d" % number * 1000 + b"\n")
            await eventually(lambda text=b"%d" % number * 1000: path.exists() and text in path.read_bytes())
        for output in reversed(outputs):
            os.write(output, b"end\n")
            os.close(output)
        assert await logs.finished(path)
        await eventually(lambda: path.read_bytes().count(b"end") == 10)
        assert path.with_name("httpd.log.1").stat().st_size <= 5000


async def test_the_output_of_a_process_that_has_ended_before_the_writer_began_is_not_lost(
    tmp_path: Path,
) -> None:
    """As when a server crashes while the writer is started again."""
    async with LogWriter(tmp_path) as logs:
        for number in range(5):
            path = tmp_path / f"{number}.log"
            if number:
                os.kill(writer_of(tmp_path), signal.SIGKILL)
            output = logs.open(path)
            os.write(output, b"the last words")
            os.close(output)
            assert await logs.finished(path)
            assert path.read_bytes() == b"the last words"


async def test_a_pipe_that_nobody_writes_to_is_removed(tmp_path: Path) -> None:
    """As a copy of a directory has them, or one whose machine has lost its power."""
    (tmp_path / "1").mkdir()
    pipe = tmp_path / "1" / ".server.log.pipe"
    os.mkfifo(pipe)
    (tmp_path / ".no.log.pipe").write_text("a file")
    async with LogWriter(tmp_path):
        await eventually(lambda: not pipe.exists())
    assert (tmp_path / ".no.log.pipe").exists()
