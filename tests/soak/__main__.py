"""Runs a soak and prints its figures, one JSON line each: `make soak MINUTES=30`, or `python -m tests.soak --help`.

The stacks of both profiles run side by side. `soak.json` (everything seen), `soak.svg` (a plot) and a page of tables
are written into the output directory. Exit code 1: a rule was broken, something was left, or something grows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.soak import plot, report
from tests.soak.driver import Driver, Result
from tests.soak.processes import left_over
from tests.soak.stack import PROFILES, running_stack


def main(arguments: list[str]) -> int:
    """Run what the arguments say; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="length of the run (default: 5)")
    parser.add_argument("--seed", type=int, help="repeats the run of this seed; by default a new one")
    parser.add_argument("--profile", choices=(*PROFILES, "both"), default="both")
    parser.add_argument("--players", type=int, default=12, help="players who come and go, per profile")
    parser.add_argument("--stayers", type=int, default=4, help="players who stay, per profile")
    parser.add_argument("--out", type=Path, default=Path("build/soak"), help="output directory")
    given = parser.parse_args(arguments)
    seed = random.randrange(1, 10**6) if given.seed is None else given.seed
    again = f"make soak SEED={seed} MINUTES={given.minutes:g}"
    _say(f"seed {seed}; the same again: {again}")
    given.out.mkdir(parents=True, exist_ok=True)
    profiles = PROFILES if given.profile == "both" else (given.profile,)
    results = asyncio.run(_soak(profiles, seed, given))
    found = [problem for result in results for problem in report.problems(result)]
    for result in results:
        for figure in report.figures(result):
            print(json.dumps(figure), flush=True)
    written = {"again": again, "results": [report.as_json(result) for result in results]}
    (given.out / "soak.json").write_text(json.dumps(written))
    (given.out / "soak.svg").write_text(plot.svg(results))
    (given.out / "soak.md").write_text(report.markdown({r.profile: report.figures(r) for r in results}))
    _say(f"everything seen, a plot and tables were written into {given.out}")
    for problem in found:
        _say(f"PROBLEM {problem}")
    _say(f"{len(found)} problems; the same again: {again}")
    return 1 if found else 0


async def _soak(profiles: tuple[str, ...], seed: int, given: argparse.Namespace) -> list[Result]:
    async with asyncio.TaskGroup() as group:
        tasks = [
            # Each profile has faults of its own.
            group.create_task(_one(profile, seed + number, given))
            for number, profile in enumerate(PROFILES)
            if profile in profiles
        ]
    return [task.result() for task in tasks]


async def _one(profile: str, seed: int, given: argparse.Namespace) -> Result:
    """One stack and its run, in its own directory that is removed unless something is wrong."""
    directory = Path(tempfile.mkdtemp(prefix=f"tipoff-soak-{profile}-"))
    began = time.monotonic()

    def say(text: str) -> None:
        _say(f"{time.monotonic() - began:6.0f} s  {profile}: {text}")

    say(f"starting, in {directory}")
    driver: Driver | None = None
    try:
        async with running_stack(directory, profile) as stack:
            driver = Driver(
                stack,
                seed,
                given.minutes * 60,
                comers=given.players,
                stayers=given.stayers,
                say=say,
            )
            say(f"ready at {stack.url}")
            await driver.run()
    finally:
        left = await asyncio.to_thread(_end_left_over, directory)
    assert driver is not None
    result = driver.result
    result.left += [f"process {line}" for line in left]
    if report.problems(result):
        say(f"its logs stay in {directory}")
    else:
        await asyncio.to_thread(shutil.rmtree, directory)
    return result


def _end_left_over(directory: Path) -> list[str]:
    """Command lines of the processes that are left of the stack in `directory`. They are ended."""
    left = left_over(directory)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    return list(left.values())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
