"""The logs of the parts of `tipoff up`: within a bound, complete when a part has died, of the latest start."""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from tests.polling import eventually
from tipoff.up.child_process import ChildProcess, ProcessSpec
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_shared.log_writer.client import LogWriter

pytestmark = pytest.mark.row(79)

FLOOD = "print('0123456789' * 100_000, flush=True)\n"


def a_part(tmp_path: Path, script: str) -> ProcessSpec:
    """A module with this script, as a part whose log is `part.log`."""
    (tmp_path / "part.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    return ProcessSpec("part", "part", "part", environment, tmp_path / "logs" / "part.log")


async def test_the_log_of_a_part_keeps_its_limit_at_every_moment(tmp_path: Path) -> None:
    """A megabyte at once goes to a log of 20,000 bytes; its end is there."""
    spec = a_part(tmp_path, f"import time\n{FLOOD}print('done', flush=True)\ntime.sleep(300)")
    async with LogWriter(tmp_path / "logs", max_bytes=20_000, rate=5_000) as logs:
        part = await ChildProcess.start(spec, logs)

        def done() -> bool:
            parts = list((tmp_path / "logs").glob("part.log*"))
            assert all(path.stat().st_size <= 20_000 for path in parts)
            return any(path.read_bytes().endswith(b"done\n") for path in parts)

        await eventually(done)
        await part.stop(2)


async def test_the_last_words_of_a_part_are_those_of_its_latest_start(tmp_path: Path) -> None:
    """Also when the log was moved aside in between: they are complete, and not of an earlier start."""
    spec = a_part(
        tmp_path,
        "import os, sys\n"
        "first = not os.path.exists(sys.argv[0] + '.ran')\n"
        "open(sys.argv[0] + '.ran', 'w').close()\n"
        f"{FLOOD}"
        "sys.exit('the first words' if first else 'the second words')\n",
    )
    said: list[str] = []
    async with LogWriter(tmp_path / "logs", max_bytes=20_000) as logs:
        part = await ChildProcess.start(spec, logs)
        keeper = asyncio.create_task(part.keep(said.append))
        await eventually(lambda: part.fails_to_start and len(said) >= 2)
        assert part.last_words().endswith("the second words")
        assert "the first words" not in part.last_words()
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
        await part.stop(2)


async def test_nats_server_says_why_it_does_not_start_and_logs_within_the_bound(tmp_path: Path) -> None:
    """Its words come through the pipe, too."""
    async with LogWriter(tmp_path / "logs") as logs:
        log_file = tmp_path / "logs" / "nats.log"
        server = EmbeddedNats(tmp_path / "nats", log_file=log_file, logs=logs, more="nonsense {")
        with pytest.raises(Exception, match=r"nats-server did not start: .*Parse error"):
            await server.start()
        server = EmbeddedNats(tmp_path / "nats", log_file=log_file, logs=logs)
        await server.start()
        assert stat.S_ISFIFO(os.stat(log_file.with_name(".nats.log.pipe")).st_mode)
        await server.stop()
        assert await logs.finished(log_file)
        assert "Server Exiting" in log_file.read_text()


async def test_a_part_starts_where_its_log_cannot_be_made(tmp_path: Path) -> None:
    """Players matter more than a log."""
    ran = tmp_path / "ran"
    spec = a_part(tmp_path, f"print('hello', flush=True)\nopen({str(ran)!r}, 'w').close()")
    async with LogWriter(tmp_path / "logs") as logs:
        missing = ProcessSpec("part", "part", "part", spec.environment, tmp_path / "no" / "part.log")
        part = await ChildProcess.start(missing, logs)
        await eventually(ran.exists, "it has written its output and gone on")
        await part.stop(2)
