"""Runs the whole system for a test or a benchmark: `tipoff up` as a process, on a free port, in its own directory.

async with running_up(tmp_path, games=Path("games.toml")) as up:
    async with tipoff.connect(up.url, game="hello", version="1") as player:
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tipoff.up.state_dir import read_up_info
from tipoff_shared.errors import Unavailable
from tipoff_shared.nats.connection import connect
from tipoff_shared.settings import NatsSettings

_UP = re.compile(r"(?:not ready yet|ready)  (http\S+)")


@dataclass(slots=True)
class RunningUp:
    """A running `tipoff up`. `url` is for players, `process` is `tipoff up` itself, `output` its output so far."""

    url: str
    state_dir: Path
    process: asyncio.subprocess.Process
    output: list[str]

    @property
    def nats_settings(self) -> NatsSettings:
        """How to connect to its NATS."""
        return read_up_info(self.state_dir).nats_settings()

    async def status(self) -> dict[str, list[dict[str, Any]]]:
        """The output of `tipoff status --json`."""
        from tipoff.operate.status import read_status

        async with connect(self.nats_settings, name="test status") as bus:
            return await read_status(bus)

    async def stop(self, timeout: float = 12.0) -> int:
        """Send Ctrl-C once and return the exit code. Raises `TimeoutError` after `timeout` seconds."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)
            async with asyncio.timeout(timeout):
                await self.process.wait()
        return self.process.returncode or 0


@asynccontextmanager
async def running_up(
    state_dir: Path,
    *,
    games: Path | None = None,
    port: int = 0,
    arguments: tuple[str, ...] = (),
    environ: Mapping[str, str] | None = None,
    timeout: float = 40.0,
) -> AsyncIterator[RunningUp]:
    """A `tipoff up` that is ready, or waits for a game that does not start; stopped at the end. Raises `Unavailable`
    with its output after `timeout` seconds."""
    command = [sys.executable, "-m", "tipoff", "up", "--port", str(port), "--state-dir", str(state_dir)]
    if games is not None:
        command += ["--games", str(games)]
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        env=os.environ | dict(environ or {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output: list[str] = []
    reader = asyncio.create_task(_collect(process, output))
    up = RunningUp("", state_dir, process, output)
    try:
        try:
            async with asyncio.timeout(timeout):
                url = await _ready_url(process, output)
        except TimeoutError:
            raise Unavailable(
                f"`tipoff up` was not ready after {timeout:g} s: " + " | ".join(output[-5:])
            ) from None
        up.url = url
        yield up
    finally:
        with contextlib.suppress(TimeoutError):
            await up.stop()
        if process.returncode is None:
            process.kill()
            await process.wait()
        await reader


async def _collect(process: asyncio.subprocess.Process, output: list[str]) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        output.append(line.decode(errors="replace").rstrip())  # noqa: PERF401 # line by line, for `_ready_url`


async def _ready_url(process: asyncio.subprocess.Process, output: list[str]) -> str:
    while True:
        for line in output:
            if (up := _UP.match(line)) is not None:
                return up[1].rstrip("/")
        if process.returncode is not None:
            raise Unavailable("`tipoff up` ended: " + " | ".join(output[-5:]))
        await asyncio.sleep(0.01)  # another task fills the list
