"""More players than httpd may serve, and players who do not read: its own httpd process, as operators run it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import websockets
from nats.aio.msg import Msg

from tests.polling import eventually
from tipoff_shared.messages import ACKNOWLEDGED
from tipoff_shared.nats.connection import Bus
from tipoff_shared.settings import NatsSettings

ARENA = '{"game":"arena","version":"1"}'
READY = b'{"SessionReady":{"token":"t","ip":"203.0.113.7","port":30004,"cert_digest":""}}'
PLACES = 3
HOLD = 0.1
"""Seconds each request takes: PLACES / HOLD = 30 players a second are what it can serve."""
STALLED = 10


@asynccontextmanager
async def httpd_process(nats: NatsSettings, **variables: str) -> AsyncIterator[tuple[str, int]]:
    """URL and process id."""
    given = {f"TIPOFF_HTTPD_{name.upper()}": value for name, value in ({"port": "0"} | variables).items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff_matchmaker_httpd",
        env=os.environ | nats.to_environment() | given,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(20):
            while b"listens on " not in (line := await process.stderr.readline()):
                assert line, "httpd did not start"
        yield line.decode().split("listens on ")[1].split()[0].strip('"'), process.pid
    finally:
        process.terminate()
        await process.communicate()  # reads what it has still to say


def resident(pid: int) -> int:
    """Bytes of memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.fixture
async def slow_matchmaker(nats: Bus) -> AsyncIterator[None]:
    """Acknowledges at once, and has a seat after `HOLD`."""
    loop = asyncio.get_running_loop()
    pending: set[asyncio.TimerHandle] = set()

    async def received(msg: Msg) -> None:
        await nats.nc.publish(msg.reply, ACKNOWLEDGED)

        def ready() -> None:
            tasks.add(loop.create_task(nats.nc.publish(msg.reply, READY)))

        pending.add(loop.call_later(HOLD, ready))

    tasks: set[asyncio.Task[None]] = set()
    sub = await nats.nc.subscribe(nats.subjects.all_requests, queue="matchmakers", cb=received)
    await nats.flush()
    yield
    await sub.unsubscribe()
    for timer in pending:
        timer.cancel()
    await asyncio.gather(*tasks)


class Outcome:
    """How a player fared: seconds from the request to the last message, and the close code."""

    def __init__(self, seconds: float, code: int | None, last: object) -> None:
        self.seconds = seconds
        self.code = code
        self.error = last["Error"][0] if isinstance(last, dict) and "Error" in last else None


async def one_player(url: str) -> Outcome:
    loop = asyncio.get_running_loop()
    last: object = None
    async with websockets.connect(
        url.replace("http", "ws", 1) + "/matchmaker/ws", proxy=None, compression=None, open_timeout=20
    ) as socket:
        began = loop.time()
        answered = began
        with suppress(websockets.ConnectionClosed):
            await socket.send(ARENA)
        with suppress(websockets.ConnectionClosed):
            while True:
                last = json.loads(await socket.recv())
                answered = loop.time()
        await socket.wait_closed()
    return Outcome(answered - began, socket.close_code, last)


async def arrive(url: str, per_second: float, seconds: float) -> list[Outcome]:
    """Players come at this rate, whatever becomes of those before them."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    players: list[asyncio.Task[Outcome]] = []
    async with asyncio.TaskGroup() as group:
        for number in range(round(per_second * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_second - loop.time()))  # the rate
            players.append(group.create_task(one_player(url)))
    return [player.result() for player in players]


def p99(outcomes: list[Outcome]) -> float:
    return statistics.quantiles([outcome.seconds for outcome in outcomes], n=100)[98]


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.row(60)
async def test_ten_times_what_fits_is_shed_at_once(settings: NatsSettings, slow_matchmaker: None) -> None:
    """Row 60: 503 and 1013 within 100 ms; who is let in waits less than twice as long as without the crowd."""
    async with httpd_process(settings, max_requests=str(PLACES)) as (url, _):
        capacity = PLACES / HOLD
        await arrive(url, capacity / 2, 1)  # warm
        calm = [outcome for outcome in await arrive(url, capacity / 2, 4) if outcome.code == 1000]
        crowd = await arrive(url, capacity * 10, 3)
    served = [outcome for outcome in crowd if outcome.code == 1000]
    shed = [outcome for outcome in crowd if outcome.code != 1000]
    late = p99(shed)
    print(
        f"calm p99 {p99(calm) * 1000:.0f} ms, served {len(served)} p99 {p99(served) * 1000:.0f} ms,", end=" "
    )
    print(f"shed {len(shed)} p99 {late * 1000:.0f} ms")
    assert {(outcome.error, outcome.code) for outcome in shed} == {(503, 1013)}
    assert all(outcome.error is None for outcome in served)
    assert len(served) > capacity  # it goes on serving as many as it can
    assert late < 0.1
    assert p99(served) < 2 * p99(calm)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.row(61)
async def test_players_who_do_not_read_cost_little_and_are_cut_off(settings: NatsSettings, nats: Bus) -> None:
    """Row 61: ten of them, each sent 10 MB: bounded memory, closed in time; the one who reads is served."""
    told = b'{"ProgressReport":"' + b"x" * 4000 + b'"}'
    inboxes: list[str] = []

    async def received(msg: Msg) -> None:
        inboxes.append(msg.reply)
        await nats.nc.publish(msg.reply, ACKNOWLEDGED)

    sub = await nats.nc.subscribe(nats.subjects.all_requests, queue="matchmakers", cb=received)
    await nats.flush()
    async with httpd_process(settings, stall_timeout="3", ping_timeout="30") as (url, pid):
        parts = urlsplit(url)
        writers = []
        for _ in range(STALLED):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=4096)
            writers.append(writer)
            writer.write(
                b"GET /matchmaker/ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()
            writer.write(b"\x81" + bytes([0x80 | len(ARENA)]) + bytes(4) + ARENA.encode())
        async with asyncio.timeout(20):
            await eventually(lambda: len(inboxes) >= STALLED, "all ask", 20)
            assert open_sockets(pid, parts.port or 0) == STALLED
            before = resident(pid)
            for number in range(2500):
                for inbox in inboxes[:STALLED]:
                    await nats.nc.publish(inbox, told)
                if number % 50 == 0:
                    await nats.flush()
        grown = resident(pid) - before
        reading = asyncio.create_task(one_player(url))
        await eventually(lambda: len(inboxes) > STALLED, "one more asks", 5)
        await nats.nc.publish(inboxes[STALLED], READY)
        outcome = await reading
        assert outcome.code == 1000
        assert outcome.seconds < 2
        await eventually(lambda: not open_sockets(pid, parts.port or 0), "they are cut off", 30)
        print(f"{grown / 1024 / 1024:.1f} MB more for ten who were sent 10 MB each")
        assert grown < 20 * 1024 * 1024
        for writer in writers:
            writer.transport.abort()
    await sub.unsubscribe()


def open_sockets(pid: int, port: int) -> int:
    """Established connections on the server's side of `port`, from the kernel's table."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(os.readlink(entry))
    count = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local = int(fields[1].rpartition(":")[2], 16)
        count += local == port and fields[3] == "01" and f"socket:[{fields[9]}]" in inodes
    return count
