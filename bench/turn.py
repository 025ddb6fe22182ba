"""Measures the turn relay: httpd and nats-server as real processes, with the load generator of `tipoff bench turn`.

In the same run, alternating, it measures the same httpd with its state in memory, to show the cost of durable state.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from tipoff.turn_relay.load import LoadReport, run_load
from tipoff.up.embedded_nats import dies_with_parent, embedded_nats
from tipoff_matchmaker_httpd.server.run import run_httpd
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.admission.client_address import AddressRule
from tipoff_shared.admission.limits import ConcurrencyLimit
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings
from tipoff_turn_relay.admission import TurnAdmission, TurnSettings
from tipoff_turn_relay.games import GAME_CODEC
from tipoff_turn_relay.pairing_list import LIST_CODEC
from tipoff_turn_relay.service import PATH, open_on_buckets
from tipoff_turn_relay.store import MemoryBucket

FLAT_OUT_CLIENTS = 40
ROUNDS = 3


def run(seconds: float = 5.0) -> Iterator[dict[str, Any]]:
    """Each figure as ``{"figure", "value", "unit"}``; `seconds` for each load."""
    yield from uvloop.run(_measure(seconds))


async def _measure(seconds: float) -> list[dict[str, Any]]:
    figures: list[dict[str, Any]] = []

    def figure(name: str, value: float, unit: str) -> None:
        figures.append({"figure": name, "value": round(value, 2), "unit": unit})

    async with AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats = await stack.enter_async_context(embedded_nats(scratch))
        real = await stack.enter_async_context(_httpd(nats.settings("bench"), "nats"))
        memory = await stack.enter_async_context(_httpd(nats.settings("memory"), "memory"))
        for clients in (30, 300):
            report = await run_load([real], clients=clients, rate=5, seconds=seconds)
            what = f"turn relay, {clients} clients at 5/s"
            figure(f"{what}: p50", 1000 * report.percentile(0.5), "ms")
            figure(f"{what}: p99", 1000 * report.percentile(0.99), "ms")
            figure(f"{what}: errors, and updates lost, doubled or out of order", _bad(report), "")
        rates: dict[str, list[float]] = {real: [], memory: []}
        bad = 0
        for _ in range(ROUNDS):
            for url, found in rates.items():
                report = await run_load([url], clients=FLAT_OUT_CLIENTS, rate=0, seconds=seconds)
                found.append(report.requests_per_second)
                bad += _bad(report)
        durable, in_memory = (statistics.median(found) for found in rates.values())
        what = f"turn relay flat out, {FLAT_OUT_CLIENTS} clients"
        figure(f"{what}: state in NATS", durable, "requests/s")
        figure(f"{what}: the same with its state in memory", in_memory, "requests/s")
        figure(f"{what}: the one over the other", durable / in_memory, "")
        figure(f"{what}: errors, and updates lost, doubled or out of order", bad, "")
    return figures


def _bad(report: LoadReport) -> int:
    return sum(report.errors.values()) + report.wrong + abs(report.handed_over - report.arrived)


@asynccontextmanager
async def _httpd(nats: NatsSettings, state: str) -> AsyncIterator[str]:
    """Start an httpd process whose turn relay keeps its state in NATS or in memory; yields its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.turn",
        state,
        env=os.environ | nats.to_environment(),
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=dies_with_parent(),
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            url = (await process.stdout.readline()).decode().strip()
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _serve(state: str) -> None:
    async with AsyncExitStack() as stack:
        httpd = await stack.enter_async_context(
            run_httpd(Settings.load(port=0), NatsSettings.from_environment())
        )
        if state == "memory":
            tasks = await stack.enter_async_context(Tasks("bench"))
            settings = TurnSettings()
            admission = TurnAdmission(
                settings, AddressRule(), ConcurrencyLimit(1, 1), CollectorRegistry(), lambda _: None
            )
            turn = await stack.enter_async_context(
                open_on_buckets(
                    MemoryBucket(LIST_CODEC), MemoryBucket(GAME_CODEC), tasks, settings, admission
                )
            )
            httpd.parts.app.endpoints[PATH] = turn.text
        print(httpd.url, flush=True)
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


if __name__ == "__main__":
    if sys.argv[1:] in (["nats"], ["memory"]):
        uvloop.run(_serve(sys.argv[1]))
    else:
        for found in run():
            print(found)
