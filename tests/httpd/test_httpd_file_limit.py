"""A process that may open few files: limits that follow from it, one line in the log, an answer instead of silence."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import socket
import sys
from contextlib import ExitStack

import httpx
import pytest

from tests.polling import eventually
from tipoff_launcher.settings import Settings as LauncherSettings
from tipoff_shared.file_limit import RESERVED, file_limit, within_file_limit
from tipoff_shared.settings import NatsSettings


@pytest.mark.row(78)
@pytest.mark.parametrize(
    "limit", [pytest.param(450, marks=pytest.mark.slow), 256, pytest.param(128, marks=pytest.mark.slow)]
)
async def test_a_crowd_at_an_httpd_that_may_open_few_files(settings: NatsSettings, limit: int) -> None:
    """More sockets than the process may open, from one address: it answers a health check among them, says once how
    many it takes and why, and never runs out of files."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = settings.to_environment() | {
        "TIPOFF_HTTPD_PORT": str(port),
        "TIPOFF_HTTPD_MAX_CONNECTIONS": "4000",
        "TIPOFF_HTTPD_MAX_CONNECTIONS_PER_ADDRESS": "4000",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff_matchmaker_httpd",
        env=os.environ | variables,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )
    said: list[str] = []

    async def read() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            said.append(line.decode())  # noqa: PERF401 # line by line, for `listens`

    async def listens() -> bool:
        return any("listens on" in line for line in said)

    reader = asyncio.create_task(read())
    try:
        await eventually(listens, "httpd listens", 20)
        with ExitStack() as stack:
            for _ in range(limit + 100):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            async with httpx.AsyncClient() as client:
                assert (await client.get(f"http://127.0.0.1:{port}/healthz", timeout=5)).status_code == 200
    finally:
        process.terminate()
        await process.wait()
        await reader
    log = "".join(said)
    (most,) = re.findall(r"at most (\d+) connections \(TIPOFF_HTTPD_MAX_CONNECTIONS\) instead of 4000", log)
    # Most of the files are for everything else where there are few; a third is for players all the same.
    assert limit // 3 <= int(most) <= max(limit - RESERVED, limit // 2)
    assert f"{limit} files open" in log
    assert "Too many open files" not in log
    assert "out of system resource" not in log


_GAME_SERVER = """
import asyncio, logging
from tipoff_gameserver import Game, GameServer
logging.basicConfig()
async def main():
    async with GameServer(Game(), stand_alone=True, listen="127.0.0.1:0"):
        pass
asyncio.run(main())
"""


@pytest.mark.row(78)
@pytest.mark.parametrize(("hard", "warns"), [(4096, False), (200, True)])
async def test_a_game_server_raises_its_limit_and_says_when_that_is_not_enough(
    hard: int, warns: bool
) -> None:
    """The usual soft limit is no obstacle where the hard one is higher."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _GAME_SERVER,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard)),
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert process.returncode == 0, said
    assert (b"WebSocket connections (seats and" in said) is warns


@pytest.mark.row(78)
@pytest.mark.parametrize(
    ("wanted", "files_each", "limit", "possible"),
    [(100, 1, 1024, 100), (4000, 1, 1024, 896), (2000, 8, 1024, 112), (64, 8, 100, 1), (64, 8, 640, 64)],
)
def test_what_fits_into_the_limit(
    wanted: int, files_each: int, limit: int, possible: int, caplog: pytest.LogCaptureFixture
) -> None:
    """At least one, and a line in the log where it is less than wanted."""
    with caplog.at_level(logging.WARNING):
        assert within_file_limit(wanted, "servers", files_each=files_each, limit=limit) == possible
    assert bool(caplog.records) is (possible < wanted)


@pytest.mark.row(78)
def test_the_launchers_default_fits_into_the_usual_limit() -> None:
    """1024 open files; and this process's own limit is read."""
    default = LauncherSettings().max_servers
    assert within_file_limit(default, "servers", files_each=8, limit=1024) == default
    assert file_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
