"""Makes figures and a verdict of what a soak has shown; pure."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tests.soak.driver import Result
from tests.soak.processes import Usage
from tests.soak.schedule import NATS, is_measured
from tests.soak.stack import LASTING
from tests.soak.trends import Point, Trend, covers, trend

MOST_MEMORY = 1.0
"""MB/h by which a process may grow."""
MOST_FILES = 4.0
"""Open files by which the mean of the last fifth may exceed that of the first."""
MOST_THREADS = 2.0
MOST = {"consumers": 4.0, "connections": 5.0, "subscriptions": 40.0, "tasks": 20.0, "processes": 4.0}
"""The same for what was counted: a little more than a random moment more or less busy makes."""
STEADY = 120.0
"""Seconds of measurement from which on a mean means something."""
LONG_ENOUGH = 15 * 60.0
"""Seconds of measurement from which on a slope of memory means something."""


def measured(result: Result) -> dict[str, list[Usage]]:
    """Process -> its usage in the measured part, for every process that lived through all of it."""
    series: dict[tuple[str, int], list[Usage]] = {}
    for used in result.usages:
        if used.process == f"{LASTING} game server" or is_measured(used.process) or used.process == NATS:
            series.setdefault((used.process, used.pid), []).append(used)
    begin, end = result.measured_from, result.seconds
    found: dict[str, list[Usage]] = {}
    count: Counter[str] = Counter()
    for (process, _), usages in series.items():
        inside = [used for used in usages if begin <= used.at <= end]
        if covers([(used.at, used.rss) for used in inside], begin, end):
            count[process] += 1
            found[process if count[process] == 1 else f"{process} {count[process]}"] = inside
    return found


def memory(usages: Iterable[Usage]) -> Trend:
    """The trend of the resident memory, in MB."""
    return trend([(used.at, used.rss) for used in usages])


def figures(result: Result) -> list[dict[str, Any]]:
    """Every figure of one run, like those of bench/."""
    found: list[dict[str, Any]] = []

    def add(name: str, value: float, unit: str, **more: Any) -> None:
        found.append({"figure": f"{result.profile}: {name}", "value": round(value, 3), "unit": unit, **more})

    add("plays", result.plays, "")
    add("faults", len(result.recoveries), "")
    add("violations", len(result.violations), "")
    add("games ended without an excuse", len(result.losses), "")
    add("longest silence of a server to a player who stays", result.longest_gap, "s")
    for process, usages in measured(result).items():
        grown = memory(usages)
        add(
            f"{process} memory slope",
            grown.per_hour,
            "MB/h",
            error=round(grown.error, 3),
            first=round(grown.first, 2),
            last=round(grown.last, 2),
            minutes=round(grown.seconds / 60, 1),
        )
        for name, points in (
            ("open files", [(used.at, float(used.files)) for used in usages]),
            ("threads", [(used.at, float(used.threads)) for used in usages]),
        ):
            fitted = trend(points)
            add(f"{process} {name}", fitted.last, "", first=round(fitted.first, 1))
    for name, points in counted(result).items():
        fitted = trend(points)
        add(name, fitted.last, "", first=round(fitted.first, 1))
    for name, recoveries in sorted(recovery_times(result).items()):
        for what, times in recoveries.items():
            if times:
                add(
                    f"{name}: {what}",
                    statistics.median(times),
                    "s",
                    longest=round(max(times), 1),
                    times=len(times),
                )
    return found


def counted(result: Result) -> dict[str, list[Point]]:
    """What was counted, in the measured part."""
    begin, end = result.measured_from, result.seconds
    inside = {
        name: [point for point in points if begin <= point[0] <= end]
        for name, points in result.counts.items()
    }
    return {name: points for name, points in inside.items() if len(points) >= 3}


def recovery_times(result: Result) -> dict[str, dict[str, list[float]]]:
    """Fault -> seconds until nothing was wrong, and until the next player got a seat."""
    found: dict[str, dict[str, list[float]]] = {}
    for recovery in result.recoveries:
        times = found.setdefault(recovery.fault.name, {"clean again": [], "next play": []})
        if recovery.clean is not None:
            times["clean again"].append(recovery.clean)
        if recovery.play is not None:
            times["next play"].append(recovery.play)
    return found


def problems(result: Result) -> list[str]:
    """What is wrong, for people; empty when nothing is."""
    found = [f"{v.rule}: {v.subject}, {v.lasted:.0f} s from {v.since:.0f} s on" for v in result.violations]
    found += [
        f"a game on {loss.deployment_id} ended at {loss.at:.0f} s without a fault of its server: {loss.reason}"
        for loss in result.losses
    ]
    found += [f"{name}: {count}" for name, count in result.outcomes.items() if name.endswith("no answer")]
    found += [f"left in the end: {what}" for what in result.left]
    for process, usages in measured(result).items():
        grown = memory(usages)
        if grown.seconds >= LONG_ENOUGH and grown.per_hour - 2 * grown.error > MOST_MEMORY:
            found.append(f"{process} grows by {grown.per_hour:.1f} ± {grown.error:.1f} MB/h")
        if grown.seconds < STEADY:
            continue
        found += _grown(f"open files of {process}", [(u.at, float(u.files)) for u in usages], MOST_FILES)
        found += _grown(f"threads of {process}", [(u.at, float(u.threads)) for u in usages], MOST_THREADS)
    for name, points in counted(result).items():
        for what, most in MOST.items():
            if name.endswith(what) and trend(points).seconds >= STEADY:
                found += _grown(name, points, most)
    return [f"{result.profile}: {text}" for text in found]


def _grown(what: str, points: list[Point], most: float) -> list[str]:
    fitted = trend(points)
    if fitted.last - fitted.first <= most:
        return []
    return [f"{what} grew from {fitted.first:.1f} to {fitted.last:.1f}"]


def as_json(result: Result) -> dict[str, Any]:
    """Everything of a run, as plain JSON values."""
    return {
        **dataclasses.asdict(result),
        "figures": figures(result),
        "problems": problems(result),
    }


def markdown(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Tables of the figures of several runs (profile -> figures), for a page of documentation."""
    values = {
        profile: {figure["figure"].partition(": ")[2]: figure for figure in found}
        for profile, found in runs.items()
    }
    names = list(dict.fromkeys(name for found in values.values() for name in found))
    slopes = [name for name in names if name.endswith(" memory slope")]
    recoveries = sorted({name.rpartition(": ")[0] for name in names if name.endswith(": clean again")})
    head = "".join(f" {profile} |" for profile in runs)
    rule = "|---|" + "---|" * len(runs)

    def row(title: str, cell: Callable[[Mapping[str, Mapping[str, Any]]], str]) -> str:
        return f"| {title} |" + "".join(f" {cell(found)} |" for found in values.values())

    def slope(name: str) -> Callable[[Mapping[str, Mapping[str, Any]]], str]:
        return lambda found: (
            "{value:.1f} ± {error:.1f} ({first:.1f} to {last:.1f})".format(**found[name])
            if name in found
            else ""
        )

    def grown(name: str) -> Callable[[Mapping[str, Mapping[str, Any]]], str]:
        return lambda found: "{first:.0f} to {value:.0f}".format(**found[name]) if name in found else ""

    def times(name: str) -> Callable[[Mapping[str, Mapping[str, Any]]], str]:
        def cell(found: Mapping[str, Mapping[str, Any]]) -> str:
            clean, play = found.get(f"{name}: clean again"), found.get(f"{name}: next play")
            if clean is None or play is None:
                return ""
            return (
                f"{clean['times']} x: {clean['value']:.1f} / {clean['longest']:.1f} s; "
                f"{play['value']:.1f} / {play['longest']:.1f} s"
            )

        return cell

    lines = [f"| memory, MB/h (MB) |{head}", rule]
    lines += [row(name.removesuffix(" memory slope"), slope(name)) for name in slopes]
    lines += ["", f"| open files, tasks, counts |{head}", rule]
    lines += [
        row(name, grown(name))
        for name in names
        if any("first" in found.get(name, {}) for found in values.values()) and name not in slopes
        if not name.endswith(" threads")
    ]
    lines += ["", f"| fault: clean again; next play (median / longest) |{head}", rule]
    lines += [row(name, times(name)) for name in recoveries]
    return "\n".join(lines) + "\n"
