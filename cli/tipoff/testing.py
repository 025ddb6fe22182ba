"""The whole system for a test or a benchmark: `tipoff up` as a process, on a free port, in a directory of its own.

async with running_up(tmp_path, games=Path("games.toml")) as up:
    async with tipoff.connect(up.url, game="hello", version="1") as player:
        ...
"""

from __future__ import annotations

import asyncio
import contextlib
import os
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


@dataclass(slots=True)
class RunningUp:
    """`url` is where players go; `process` is `tipoff up` itself; its output so far is in `output`."""

    url: str
    state_dir: Path
    process: asyncio.subprocess.Process
    output: list[str]

    @property
    def nats_settings(self) -> NatsSettings:
        return read_up_info(self.state_dir).nats_settings()

    async def status(self) -> dict[str, list[dict[str, Any]]]:
        """As `tipoff status --json`."""
        from tipoff.operate.status import read_status

        async with connect(self.nats_settings, name="test status") as bus:
            return await read_status(bus)

    async def stop(self, timeout: float = 12.0) -> int:
        """One Ctrl-C; the exit code. Raises `TimeoutError` when it does not end."""
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
    """`tipoff up`, ready; stopped at the end. Raises `Unavailable` with its output when it does not get ready."""
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
            if line.startswith("ready"):
                return line.split()[1].rstrip("/")
        if process.returncode is not None:
            raise Unavailable("`tipoff up` ended: " + " | ".join(output[-5:]))
        await asyncio.sleep(0.01)  # its output arrives in a list that a task of its own fills
