"""The commands `tipoff relay` and `tipoff bench`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Coroutine
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from tipoff_shared.errors import ConfigError

bench_app = typer.Typer(help="Load on a turn relay, from one machine or several.", no_args_is_help=True)

_URL = "http://127.0.0.1:3000"


def relay_command(
    name: Annotated[str, typer.Option(help="Your name.")],
    url: Annotated[str, typer.Option(help="Where httpd is.")] = _URL,
    partner: Annotated[
        str | None,
        typer.Option(help="The only partner wanted, who must name you as well. Default: anybody."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing on standard error.")] = False,
) -> None:
    """Pair with another player: your standard input becomes their standard output, and theirs yours.

    A chat between two terminals, or a pipe for any program's data. Ends when both inputs have ended; exit code 1
    when the partner left.
    """
    from tipoff.turn_relay.client import TurnClient
    from tipoff.turn_relay.pipe import FileInput, relay

    def say(text: str) -> None:
        if not quiet:
            print(f"tipoff relay: {text}", file=sys.stderr, flush=True)

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    async def work() -> bool:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C comes as KeyboardInterrupt
                loop.add_signal_handler(number, task.cancel)
        async with TurnClient(url) as client:
            say("waiting for " + (partner or "anybody"))
            return await relay(client, name, partner, FileInput(0), write, say)

    try:
        complete = _run(work())
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise typer.Exit(130) from None
    except BrokenPipeError:
        raise typer.Exit(1) from None  # the reader of our output has ended: no message
    if not complete:
        raise typer.Exit(1)


@bench_app.command("turn")
def bench_turn(
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="http://HOST:PORT of httpd, with a path where it is not /turn. Several: the two of a pair use "
            "different ones.",
            show_default=_URL,
        ),
    ] = None,
    clients: Annotated[int, typer.Option(help="Players; an even number.", min=2, max=20_000)] = 30,
    rate: Annotated[
        float, typer.Option(help="Updates per second of each; 0: as many as there are answers.", min=0)
    ] = 5.0,
    seconds: Annotated[float, typer.Option(help="How long.", min=0.1)] = 30.0,
    size: Annotated[int, typer.Option(help="Bytes of an update.", min=8, max=8192)] = 32,
    start_at: Annotated[
        str | None,
        typer.Option(
            help="HH:MM:SS of this machine's clock: pair now, begin then. For several machines at once."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, which `tipoff bench total` adds up.")
    ] = False,
) -> None:
    """Play in pairs that hand each other numbered updates by the text protocol, and check every one.

    Exit code 1 when there was an error or an update was lost, doubled or out of order.
    """
    from tipoff.turn_relay.load import run_load

    begin = _unix_time(start_at) if start_at else None
    report = _run(
        run_load(url or [_URL], clients=clients, rate=rate, seconds=seconds, size=size, start_at=begin)
    )
    result = {
        "clients": clients,
        "seconds": round(report.seconds, 3),
        "requests": len(report.latencies),
        "errors": dict(report.errors),
        "handed_over": report.handed_over,
        "arrived": report.arrived,
        "out_of_order": report.wrong,
        "histogram": histogram(report.latencies),
    }
    _show([result], as_json)


@bench_app.command("total")
def bench_total(
    files: Annotated[
        list[Path], typer.Argument(help="What `tipoff bench turn --json` wrote, a file for each machine.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Add up what `tipoff bench turn` measured on several machines at once."""
    try:
        _show([json.loads(file.read_text()) for file in files], as_json)
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"the output of `tipoff bench turn --json` is expected: {exc!r}") from exc


def histogram(latencies: list[float]) -> dict[str, int]:
    """How many took about how long: microseconds, in steps of 2 %, so that several machines' can be added."""
    steps = Counter(round(math.log(max(1.0, latency * 1e6), 1.02)) for latency in latencies)
    return {str(round(1.02**step)): steps[step] for step in sorted(steps)}


def percentile(parts: Counter[int], share: float) -> float:
    """Milliseconds."""
    wanted, seen = share * parts.total(), 0
    for microseconds in sorted(parts):
        seen += parts[microseconds]
        if seen >= wanted:
            return microseconds / 1000
    return math.nan


def _show(results: list[dict[str, Any]], as_json: bool) -> None:
    """Print the sum of these results; exit code 1 unless it is clean."""
    parts: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    for result in results:
        parts.update({int(step): int(count) for step, count in result["histogram"].items()})
        errors.update(result["errors"])
    total: dict[str, Any] = {
        name: sum(result[name] for result in results)
        for name in ("clients", "requests", "handed_over", "arrived", "out_of_order")
    }
    total |= {
        "seconds": max(result["seconds"] for result in results),
        "requests_per_second": round(sum(r["requests"] / r["seconds"] for r in results if r["seconds"]), 1),
        "errors": dict(errors),
    }
    for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("max_ms", 1.0)):
        milliseconds = percentile(parts, share)
        total[name] = None if math.isnan(milliseconds) else milliseconds
    if as_json:
        print(json.dumps(total | {"histogram": {str(step): parts[step] for step in sorted(parts)}}))
    else:
        print(f"{total['clients']} clients, {total['seconds']:.1f} s")
        print(f"  requests     {total['requests']}  ({total['requests_per_second']:.0f}/s)")
        print(
            f"  answered in  p50 {total['p50_ms']} ms   p99 {total['p99_ms']} ms   max {total['max_ms']} ms"
        )
        print(
            f"  updates      {total['handed_over']} handed over, {total['arrived']} arrived, "
            f"{total['out_of_order']} out of order"
        )
        print(
            f"  errors       {sum(errors.values())}" + "".join(f"\n    {n} x {e}" for e, n in errors.items())
        )
    clean = not errors and not total["out_of_order"] and total["handed_over"] == total["arrived"]
    if not clean or not total["arrived"]:
        raise typer.Exit(1)


def _unix_time(clock: str) -> float:
    """The next moment at which the clock shows HH:MM:SS."""
    try:
        wanted = datetime.strptime(clock, "%H:%M:%S").time()  # noqa: DTZ007 # a time of this machine's clock
    except ValueError as exc:
        raise ConfigError(f"--start-at {clock}: HH:MM:SS is expected") from exc
    now = datetime.now().astimezone()
    at = now.replace(hour=wanted.hour, minute=wanted.minute, second=wanted.second, microsecond=0)
    if at.timestamp() < time.time():
        at += timedelta(days=1)
    return at.timestamp()


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """`asyncio.run` on uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)
