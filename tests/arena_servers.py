"""The arena as the tests of several folders want it: a games.toml with it, and one server process that stands alone."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


def arena_toml(
    name: str = "arena", version: str = "1", *, tick_rate: int | None = None, **settings: int
) -> str:
    """One `[[game]]` of a games.toml: arena servers without bots, `settings` as given."""
    lines = "".join(f"{setting} = {value}\n" for setting, value in settings.items())
    rate = "" if tick_rate is None else f', ARENA_TICK_RATE = "{tick_rate}"'
    return f"""
[[game]]
name = "{name}"
version = "{version}"
{lines}
[game.process]
command = ["python", "-m", "tipoff_arena.server"]
env = {{ ARENA_BOTS = "0"{rate} }}
"""


@asynccontextmanager
async def arena_process(listen: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server that listens on HOST:PORT, to be killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff_arena.server",
        env=os.environ | {"TIPOFF_LISTEN": listen, "TIPOFF_LOG_LEVEL": "INFO"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"stand-alone: " not in (line := await process.stderr.readline()):
                assert line, "the server ended before it listened"
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
