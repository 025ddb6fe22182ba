"""Measures what others notice when one address floods httpd with connections: the same clients, with it and without it.

httpd, nats-server, a stub matchmaker and the attacker are processes on the same cores. The attacker opens idle sockets
from 127.0.0.2 and keeps each for `KEPT` seconds. The others ask from 127.0.0.1, each time on a new connection: health
on the main port, health on the operator's own, and plays.

Another attacker connects, asks for health and goes, again and again, from an address of this machine that is not
loopback, since loopback is not limited: with the limit of new connections a second, and without it.

    python -m bench httpd_attacks
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import httpd
from bench.players import play_many
from tipoff.up.embedded_nats import embedded_nats

RATES = (603, 2000)
"""Connections per second."""
SECONDS = 10.0
WARM_UP = 10.0
"""Seconds of the flood before anything is measured: time enough to take every place."""
KEPT = 9.0
MOST = 8000
"""Sockets that the attacker keeps."""
PAUSE = 0.1
_TIMEOUT = 2.0


def run() -> Iterator[dict[str, Any]]:
    """Yield the figures; `bench` prints them."""
    yield from asyncio.run(_measure())
    if own := _own_address():
        for limit in ("0", "50"):
            yield from asyncio.run(_measure_comers(own, limit))


async def _measure() -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = []
    with socket.create_server(("127.0.0.1", 0)) as free:
        operator = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            embedded_nats(Path(scratch)) as nats,
            httpd.stub(nats.settings()),
            httpd.process(
                "tipoff_matchmaker_httpd",
                nats.settings(),
                TIPOFF_HTTPD_PORT="0",
                TIPOFF_HTTPD_METRICS_PORT=str(operator),
            ) as (url, pid),
        ):
            await play_many(url, "arena", "1", plays=100, in_flight=4)
            figures += await _others(url, operator, pid, "nobody attacks")
            for rate in RATES:
                async with _attacker(url, rate):
                    await asyncio.sleep(WARM_UP)
                    figures += await _others(url, operator, pid, f"{rate} connections/s from one address")
    return figures


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


async def _measure_comers(own: str, limit: str) -> list[dict[str, Any]]:
    """What it costs httpd that `own` connects and goes, with `limit` new connections of an address a second."""
    figures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        async with (
            embedded_nats(Path(scratch)) as nats,
            httpd.stub(nats.settings()),
            httpd.process(
                "tipoff_matchmaker_httpd",
                nats.settings(),
                TIPOFF_HTTPD_PORT="0",
                TIPOFF_HTTPD_HOST="0.0.0.0",  # noqa: S104 # of this machine only
                TIPOFF_HTTPD_CONNECTIONS_PER_SECOND=limit,
            ) as (url, pid),
        ):
            await play_many(url, "arena", "1", plays=100, in_flight=4)
            for rate in (0, *RATES):
                async with _attacker(url, rate, own):
                    await asyncio.sleep(WARM_UP)  # the first ones are within what may come at once
                    when = f"{rate} comers/s, limit {limit}"
                    cpu, began = httpd.cpu_seconds(pid), time.monotonic()
                    plays = await _plays(url)
                    cpu = (httpd.cpu_seconds(pid) - cpu) / (time.monotonic() - began)
                good = sorted(each for each in plays if each is not None)
                figures += [
                    _figure(f"plays, {when}: failed of {len(plays)}", len(plays) - len(good), ""),
                    _figure(f"plays, {when}: p50", good[len(good) // 2] * 1000 if good else 0, "ms"),
                    _figure(f"httpd's share of a core, {when}", cpu * 100, "%"),
                ]
    return figures


async def _others(url: str, operator: int, pid: int, when: str) -> list[dict[str, Any]]:
    """What everybody else gets during `SECONDS`."""
    main = urlsplit(url).port or 80
    cpu, began = httpd.cpu_seconds(pid), time.monotonic()
    health, own, plays = await asyncio.gather(_checks(main), _checks(operator), _plays(url))
    cpu = (httpd.cpu_seconds(pid) - cpu) / (time.monotonic() - began)
    figures = []
    for name, seconds in (("health checks", health), ("health checks, own port", own), ("plays", plays)):
        good = sorted(each for each in seconds if each is not None)
        figures += [
            _figure(f"{name}, {when}: failed of {len(seconds)}", len(seconds) - len(good), ""),
            _figure(f"{name}, {when}: p50", good[len(good) // 2] * 1000 if good else 0, "ms"),
            _figure(f"{name}, {when}: slowest", good[-1] * 1000 if good else 0, "ms"),
        ]
    return [*figures, _figure(f"httpd's share of a core, {when}", cpu * 100, "%")]


def _figure(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"figure": name, "value": round(value, 2), "unit": unit}


async def _checks(port: int) -> list[float | None]:
    """Seconds of each health check; None for one that failed."""
    return await _again(lambda: _check(port))


async def _check(port: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return b" 200 " in await reader.readline()
    finally:
        writer.transport.abort()


async def _plays(url: str) -> list[float | None]:
    async def play() -> bool:
        return not (await play_many(url, "arena", "1", plays=1, in_flight=1)).errors

    return await _again(play)


async def _again(ask: Any) -> list[float | None]:
    found: list[float | None] = []
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            async with asyncio.timeout(_TIMEOUT):
                good = await ask()
        except (OSError, TimeoutError):
            good = False
        found.append(time.monotonic() - began if good else None)
        await asyncio.sleep(PAUSE)
    return found


@asynccontextmanager
async def _attacker(url: str, rate: int, source: str = "") -> AsyncIterator[None]:
    """`source`: where it connects from and goes again; "": it keeps idle sockets of 127.0.0.2."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.httpd_attacks", str(urlsplit(url).port), str(rate), source
    )
    try:
        yield
        if process.returncode is not None:
            raise RuntimeError("the attacker ended early")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def attack(port: int, rate: int) -> None:
    """Open `rate` idle sockets a second, for ever."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kept: list[tuple[float, socket.socket]] = []
    began, opened = time.monotonic(), 0
    while True:
        now = time.monotonic()
        while opened < (now - began) * rate:
            sock = socket.socket()
            sock.setblocking(False)
            sock.setsockopt(
                socket.IPPROTO_IP, 24, 1
            )  # IP_BIND_ADDRESS_NO_PORT: the port is chosen by connect
            sock.bind(("127.0.0.2", 0))
            sock.connect_ex(("127.0.0.1", port))
            kept.append((now, sock))
            opened += 1
        while kept and (kept[0][0] < now - KEPT or len(kept) > MOST):
            kept.pop(0)[1].close()
        time.sleep(0.005)


def come_and_go(port: int, rate: int, source: str) -> None:
    """Connect from `source` `rate` times a second, ask for something, and go as soon as an answer is there."""
    began, opened = time.monotonic(), 0
    waiting: list[tuple[float, socket.socket]] = []
    while True:
        now = time.monotonic()
        while opened < (now - began) * rate:
            opened += 1
            sock = socket.socket()
            sock.bind((source, 0))
            with contextlib.suppress(OSError):
                sock.connect((source, port))
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            waiting.append((now, sock))
        while waiting and waiting[0][0] < now - 0.05:
            waiting.pop(0)[1].close()
        time.sleep(0.002)


if __name__ == "__main__":
    if sys.argv[3]:
        come_and_go(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    else:
        attack(int(sys.argv[1]), int(sys.argv[2]))
