"""kill -9 of httpd and of NATS in the middle of games: every update arrives exactly once and in order."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tipoff.turn_relay.load import LoadReport, run_load
from tipoff.up.embedded_nats import EmbeddedNats, dies_with_parent, embedded_nats
from tipoff_matchmaker_httpd.server.run import run_httpd
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.settings import NatsSettings


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class HttpdProcess:
    """A real httpd process on a port that it keeps over restarts."""

    def __init__(self, nats: NatsSettings) -> None:
        self._nats = nats
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tipoff_matchmaker_httpd",
            env=os.environ | self._nats.to_environment() | {"TIPOFF_HTTPD_PORT": str(self._port)},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            preexec_fn=dies_with_parent(),
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                except OSError:
                    await asyncio.sleep(0.02)  # a process that comes up tells nobody else
                else:
                    writer.close()
                    return

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def httpds(nats: NatsSettings, count: int) -> AsyncIterator[list[HttpdProcess]]:
    async with AsyncExitStack() as stack:
        processes = [HttpdProcess(nats) for _ in range(count)]
        for process in processes:
            stack.push_async_callback(process.kill)
        await asyncio.gather(*(process.start() for process in processes))
        yield processes


async def kill_nats(server: EmbeddedNats, away: float) -> None:
    server.process.kill()
    await server.process.wait()
    await asyncio.sleep(away)  # an outage of that length
    await server.start()


def nothing_lost(report: LoadReport) -> None:
    print(dict(report.errors))
    assert report.wrong == 0
    assert report.arrived == report.handed_over > 0


@pytest.mark.slow
async def test_nats_killed_in_the_middle_of_games(tmp_path: Path) -> None:
    async with (
        embedded_nats(tmp_path) as server,
        run_httpd(Settings.load(port=0), server.settings()) as httpd,
    ):
        load = asyncio.ensure_future(run_load([httpd.url], clients=20, rate=20, seconds=2.0))
        await asyncio.sleep(1.0)  # in the middle
        await kill_nats(server, away=0.1)
        report = await load
    nothing_lost(report)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_httpds_and_nats_killed_in_the_middle_of_fifty_games(tmp_path: Path) -> None:
    """The two players of each game are at different httpds, and go to the other when theirs is gone."""
    async with embedded_nats(tmp_path) as server, httpds(server.settings(), 2) as (one, other):
        load = asyncio.ensure_future(run_load([one.url, other.url], clients=100, rate=10, seconds=14))
        await asyncio.sleep(3)  # in the middle of games
        await one.kill()
        await asyncio.sleep(1)  # the outage
        await one.start()
        await asyncio.sleep(1)  # the games go on
        await kill_nats(server, away=1.0)
        await asyncio.sleep(1)  # the games go on
        await other.kill()
        await kill_nats(server, away=0.2)
        await other.start()
        report = await load
    assert report.errors, "nothing was killed"
    nothing_lost(report)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_everything_restarted_at_once_in_the_middle_of_games(tmp_path: Path) -> None:
    """Nobody is dropped for a silence in which nobody could be heard: here longer than a game's 20 seconds."""
    async with embedded_nats(tmp_path) as server, httpds(server.settings(), 1) as (httpd,):
        load = asyncio.ensure_future(run_load([httpd.url], clients=20, rate=5, seconds=30))
        await asyncio.sleep(3)  # in the middle of games
        await httpd.kill()
        await kill_nats(server, away=22)
        await httpd.start()
        report = await load
    nothing_lost(report)
