"""Measures httpd by itself: plays to a stub matchmaker that answers at once, and the cost of a waiting player.

httpd, nats-server, the stub and the load are four processes on the same cores, so plays per second describe
all four; CPU per play is httpd's.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nats.aio.msg import Msg

from bench.players import Player, play_many
from tipoff.up.embedded_nats import embedded_nats
from tipoff_shared.messages import SessionReady, SessionRequestAccepted, encode_feedback
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.settings import NatsSettings

WAITING = 1000
PLAYS = {1: 1000, 50: 4000, 500: 4000}
_TICKS = os.sysconf("SC_CLK_TCK")
_ANSWERS = (
    b'"Acknowledged"',
    encode_feedback(SessionRequestAccepted("s" + "0" * 26)),
    encode_feedback(
        SessionReady("A" * 2732, "127.0.0.1", 30000, "", "s" + "0" * 26, "1" * 19, "arena-0123456789")
    ),
    b"",
)


def run() -> Iterator[dict[str, Any]]:
    yield from asyncio.run(_measure())


async def _measure() -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            embedded_nats(Path(scratch)) as nats,
            stub(nats.settings()),
            _httpd(nats.settings()) as (url, pid),
        ):
            await play_many(url, "arena", "1", plays=200, in_flight=10)
            figures.append(_figure("memory per waiting WebSocket", await _memory_per_player(url, pid), "KiB"))
            for in_flight, plays in PLAYS.items():
                cpu = cpu_seconds(pid)
                got = await play_many(url, "arena", "1", plays=plays, in_flight=in_flight)
                cpu = (cpu_seconds(pid) - cpu) / plays * 1000
                if got.errors:
                    raise RuntimeError(f"plays failed: {got.errors}")
                where = f"{in_flight} in flight"
                figures += [
                    _figure(f"httpd plays/s, {where}", got.per_second, "1/s"),
                    _figure(f"httpd p50, {where}", got.quantile(0.5) * 1000, "ms"),
                    _figure(f"httpd p99, {where}", got.quantile(0.99) * 1000, "ms"),
                    _figure(f"httpd CPU per play, {where}", cpu, "ms"),
                ]
    return figures


def _figure(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"figure": name, "value": round(value, 3), "unit": unit}


async def _memory_per_player(url: str, pid: int) -> float:
    """KiB of httpd's memory per player whose request is acknowledged and not yet answered."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    before = _resident(pid)
    loop = asyncio.get_running_loop()
    connections = [
        await loop.create_connection(lambda: Player("x", "waiting", "1"), host, port) for _ in range(WAITING)
    ]
    await asyncio.sleep(1.0)  # all of them have been acknowledged long before
    grown = _resident(pid) - before
    for transport, player in connections:
        player.done.cancel()
        transport.abort()
    return grown / WAITING / 1024


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@asynccontextmanager
async def process(module: str, settings: NatsSettings, **variables: str) -> AsyncIterator[tuple[str, int]]:
    """Start a child process that prints `... listens on X` to standard error; yields X and its pid."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        env=os.environ | settings.to_environment() | variables,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"listens on " not in (line := await process.stderr.readline()):
                if not line:
                    raise RuntimeError(f"{module} did not start")
        yield line.decode().split("listens on ")[1].split()[0].strip('"'), process.pid
    finally:
        process.terminate()
        await process.wait()


def _httpd(settings: NatsSettings) -> Any:
    return process(
        "tipoff_matchmaker_httpd", settings, TIPOFF_HTTPD_PORT="0", TIPOFF_HTTPD_ACKNOWLEDGE_TIMEOUT="60"
    )


def stub(settings: NatsSettings) -> Any:
    return process("bench.httpd", settings)


async def serve_stub() -> None:
    """A matchmaker with a seat for every player, except those of the game `waiting`."""
    async with connect(NatsSettings.from_environment(), name="stub") as bus:
        await _answer_all(bus)
        print("stub listens on NATS", file=sys.stderr, flush=True)
        await bus.closed.wait()


async def _answer_all(bus: Bus) -> None:
    async def answer(msg: Msg) -> None:
        for message in _ANSWERS[:1] if ".waiting." in msg.subject else _ANSWERS:
            await bus.nc.publish(msg.reply, message)

    await bus.nc.subscribe(bus.subjects.all_requests, queue="matchmakers", cb=answer)
    await bus.flush()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve_stub())
