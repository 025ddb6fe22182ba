"""Draws a soak as SVG, by hand: memory, open files, sessions and JetStream over time, and how long recoveries took."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from tests.soak.driver import Result
from tests.soak.report import recovery_times
from tests.soak.schedule import Fault, Kind
from tests.soak.trends import Point

_WIDTH, _LEFT, _PLOT, _LABELS = 640, 56, 440, 140
_PANEL, _GAP, _HEAD = 120, 46, 92
_COLOURS = ("#0f766e", "#b45309", "#1d4ed8", "#be185d", "#6d28d9", "#4d7c0f", "#0e7490", "#9f1239")
_KINDS = {
    "kill -9, SIGTERM": ("#be123c", (Kind.KILL, Kind.TERMINATE)),
    "SIGSTOP": ("#b45309", (Kind.STOP,)),
    "link frozen or cut": ("#1d4ed8", (Kind.FREEZE, Kind.CUT)),
}
_LOWEST, _HIGHEST = 0.1, 100.0
"""Seconds at the ends of the axis of the recovery times."""


def svg(results: Sequence[Result]) -> str:
    """The picture: one column for each result."""
    columns = [_column(result) for result in results]
    height = max(height for _, height in columns)
    width = _WIDTH * len(columns)
    body = "".join(
        f'<g transform="translate({number * _WIDTH} 0)">{text}</g>\n'
        for number, (text, _) in enumerate(columns)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="Memory, files, sessions and recovery times of a soak" '
        'font-family="system-ui, \'DejaVu Sans\', sans-serif" font-size="11" fill="#475569">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n{body}</svg>\n'
    )


def _column(result: Result) -> tuple[str, float]:
    parts = [
        _text(_LEFT, 26, f"{result.profile} profile", 'font-size="17" font-weight="600" fill="#0f172a"'),
        _text(
            _LEFT,
            44,
            f"{result.seconds / 60:g} minutes, {result.plays} plays, {len(result.recoveries)} faults, "
            f"{len(result.violations)} broken rules, seed {result.seed}",
        ),
        _faults(result),
    ]
    top = float(_HEAD)
    panels: list[tuple[str, dict[str, list[Point]], bool]] = [
        ("resident memory of each process, MB", _by_process(result, "rss"), True),
        ("open files", _by_process(result, "files"), True),
        ("sessions", {"sessions": _thinned([(at, float(n)) for at, n in result.sessions])}, False),
        ("tasks of the event loops", _counts(result, " tasks"), True),
        ("NATS", _counts(result, " subscriptions", " connections", " consumers"), True),
        ("JetStream, kB", _counts(result, " kB"), False),
    ]
    for title, series, labelled in panels:
        parts.append(_panel(title, series, top, result, labelled=labelled))
        top += _PANEL + _GAP
    recoveries, height = _recoveries(result, top)
    parts.append(recoveries)
    return "\n".join(parts), top + height


def _counts(result: Result, *ends: str) -> dict[str, list[Point]]:
    """What was counted under names with these ends; the names without what all have in common."""
    return {
        name.removesuffix(ends[0] if len(ends) == 1 else "").removeprefix("NATS "): points
        for end in ends
        for name, points in result.counts.items()
        if name.endswith(end)
    }


def _by_process(result: Result, what: str) -> dict[str, list[Point]]:
    """Name -> points. Processes of one name follow each other; a restart breaks the line (a NaN)."""
    found: dict[str, list[Point]] = {}
    pids: dict[str, int] = {}
    lasting: dict[tuple[str, int], int] = {}
    for used in result.usages:
        lasting[used.process, used.pid] = lasting.get((used.process, used.pid), 0) + 1
    for used in result.usages:
        name = used.process
        if "game server" in name:
            # Of the game servers at one time only the one that lives longest is drawn.
            longest = max((n, pid) for (process, pid), n in lasting.items() if process == name)[1]
            if used.pid != longest:
                continue
        points = found.setdefault(name, [])
        if pids.get(name, used.pid) != used.pid:
            points.append((used.at, math.nan))
        pids[name] = used.pid
        points.append((used.at, float(getattr(used, what))))
    return found


def _panel(
    title: str, series: Mapping[str, list[Point]], top: float, result: Result, *, labelled: bool
) -> str:
    values = [y for points in series.values() for _, y in points if not math.isnan(y)]
    highest = _nice(max(values, default=1.0))
    parts = [_text(_LEFT, top - 7, title, 'font-weight="600" fill="#1e293b"')]

    def x(at: float) -> float:
        return _LEFT + _PLOT * min(1.0, at / result.seconds)

    def y(value: float) -> float:
        return top + _PANEL * (1 - value / highest)

    parts.append(
        f'<rect x="{x(0):.1f}" y="{top}" width="{x(result.measured_from) - _LEFT:.1f}" height="{_PANEL}" '
        'fill="#f1f5f9"/>'
    )
    for part in (0, 0.5, 1):
        level = y(highest * part)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_LEFT + _PLOT}" y1="{level:.1f}" y2="{level:.1f}" stroke="#e2e8f0"/>'
        )
        parts.append(_text(_LEFT - 6, level + 4, f"{highest * part:g}", 'text-anchor="end"'))
    parts += [
        _text(x(minute * 60), top + _PANEL + 14, f"{minute:g} min", 'text-anchor="middle"')
        for minute in _minutes(result.seconds)
    ]
    labels: list[tuple[float, str, str]] = []
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path, pen = [], "M"
        for at, value in points:
            if at > result.seconds or math.isnan(value):
                pen = "M"
                continue
            path.append(f"{pen}{x(at):.1f} {y(value):.1f}")
            pen = "L"
        parts.append(f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if points and labelled:
            labels.append((y([v for _, v in points if not math.isnan(v)][-1]), name, colour))
    for level, name, colour in _spread(labels):
        parts.append(_text(_LEFT + _PLOT + 6, level + 4, name, f'fill="{colour}"'))
    return "\n".join(parts)


def _spread(labels: list[tuple[float, str, str]], space: float = 13.0) -> list[tuple[float, str, str]]:
    """The labels, moved down where two would cover each other."""
    placed: list[tuple[float, str, str]] = []
    for level, name, colour in sorted(labels):
        lowest = placed[-1][0] + space if placed else level
        placed.append((max(level, lowest), name, colour))
    return placed


def _faults(result: Result) -> str:
    """A tick above the first panel for each fault."""
    parts = []
    for recovery in result.recoveries:
        at = _LEFT + _PLOT * recovery.began / result.seconds
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_HEAD - 4 - 18}" y2="{_HEAD - 4 - 28}" '
            f'stroke="{_colour(recovery.fault)}" stroke-width="2"/>'
        )
    return "\n".join(parts)


def _colour(fault: Fault) -> str:
    return next(colour for colour, kinds in _KINDS.values() if fault.kind in kinds)


def _recoveries(result: Result, top: float) -> tuple[str, float]:
    """A row of dots for each fault: seconds until no rule was broken."""
    parts = [
        _text(
            _LEFT,
            top - 7,
            "seconds from a fault's end until no rule is broken",
            'font-weight="600" fill="#1e293b"',
        )
    ]
    left, wide = _LEFT + 170.0, _PLOT - 170.0
    times = recovery_times(result)
    kinds = {recovery.fault.name: recovery.fault for recovery in result.recoveries}

    def x(seconds: float) -> float:
        part = math.log(min(max(seconds, _LOWEST), _HIGHEST) / _LOWEST) / math.log(_HIGHEST / _LOWEST)
        return left + wide * part

    height = 16.0 * len(times) + 6
    for seconds in (0.1, 1, 10, 60):
        parts.append(
            f'<line x1="{x(seconds):.1f}" x2="{x(seconds):.1f}" y1="{top}" y2="{top + height:.1f}" stroke="#e2e8f0"/>'
        )
        parts.append(_text(x(seconds), top + height + 14, f"{seconds:g} s", 'text-anchor="middle"'))
    for row, name in enumerate(sorted(times)):
        level = top + 14 + 16 * row
        parts.append(_text(left - 8, level + 4, name, 'text-anchor="end"'))
        parts += [
            f'<circle cx="{x(taken):.1f}" cy="{level:.1f}" r="3.5" fill="{_colour(kinds[name])}" '
            'fill-opacity="0.6"/>'
            for taken in times[name]["clean again"]
        ]
    level = top + height + 34
    at = float(_LEFT)
    for name, (colour, _) in _KINDS.items():
        parts.append(f'<circle cx="{at + 4:.1f}" cy="{level - 4:.1f}" r="4" fill="{colour}"/>')
        parts.append(_text(at + 12, level, name))
        at += 22 + 6.2 * len(name)
    parts.append(
        f'<rect x="{at:.1f}" y="{level - 10:.1f}" width="14" height="12" fill="#f1f5f9" stroke="#cbd5e1"/>'
    )
    parts.append(_text(at + 20, level, "warm-up"))
    return "\n".join(parts), height + 52


def _thinned(points: list[Point], most: int = 400) -> list[Point]:
    return points[:: max(1, len(points) // most)]


def _minutes(seconds: float) -> list[float]:
    minutes = seconds / 60
    step = next((s for s in (1, 2, 5, 10, 15, 30, 60) if minutes / s <= 7), 60 * math.ceil(minutes / 420))
    return [step * n for n in range(int(minutes / step) + 1)]


def _nice(highest: float) -> float:
    """The next round number from `highest` on."""
    power: float = 10.0 ** math.floor(math.log10(max(highest, 1e-9)))
    return next(power * part for part in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10) if power * part >= highest)


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(text)}</text>'
