"""What a run found: a table by module, and each survivor as a diff."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

NOTICED, TIMED_OUT, SURVIVED, UNREACHED, ACCEPTED = (
    "noticed",
    "timed out",
    "survived",
    "unreached",
    "accepted",
)


@dataclass(frozen=True)
class Result:
    """How one change ended, and which test noticed it, or why it is accepted."""

    module: str
    function: str
    line: int
    kind: str
    diff: str
    outcome: str
    by: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.module, self.function, self.diff

    @property
    def survived(self) -> bool:
        return self.outcome in (SURVIVED, UNREACHED)


def sample(changes: Sequence[T], size: int | None, seed: int) -> list[T]:
    """`size` of the changes, the same ones for the same seed, in their order; all of them without a size."""
    if size is None or size >= len(changes):
        return list(changes)
    return [changes[at] for at in sorted(random.Random(seed).sample(range(len(changes)), size))]


def share(results: Iterable[Result]) -> float | None:
    """How many per cent of the changes that are not accepted were noticed, a time-out included; None without any."""
    counted = [result for result in results if result.outcome != ACCEPTED]
    if not counted:
        return None
    return 100 * sum(not result.survived for result in counted) / len(counted)


def table(results: Sequence[Result], possible: dict[str, int]) -> str:
    """A Markdown table. `possible` says how many changes each module has."""
    head = "| module | changes | tried | noticed | timed out | survived | accepted | share |"
    rows = [head, "|---|---:|---:|---:|---:|---:|---:|---:|"]
    groups = [(module, [r for r in results if r.module == module]) for module in possible]
    if len(groups) > 1:
        groups.append(("all", list(results)))
    for module, found in groups:
        known = sum(possible.values()) if module == "all" else possible[module]
        counts = [sum(r.outcome == outcome for r in found) for outcome in (NOTICED, TIMED_OUT)]
        counts += [sum(r.survived for r in found), sum(r.outcome == ACCEPTED for r in found)]
        per_cent = share(found)
        cells = [known, len(found), *counts, "-" if per_cent is None else f"{per_cent:.0f} %"]
        rows.append(f"| {module} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def survivors(results: Iterable[Result]) -> str:
    """Each survivor with its place and diff; then the accepted ones with their reasons."""
    parts: list[str] = []
    for result in results:
        if result.survived:
            why = "no fast test runs it" if result.outcome == UNREACHED else "survived"
            parts.append(
                f"{result.module}:{result.line} {result.function}: {result.kind}, {why}\n{_indented(result.diff)}"
            )
    for result in results:
        if result.outcome == ACCEPTED:
            place = f"{result.module}:{result.line} {result.function}"
            parts.append(f"{place}: {result.kind}, accepted: {result.by}\n{_indented(result.diff)}")
    return "\n\n".join(parts)


def _indented(diff: str) -> str:
    return "\n".join(f"    {line}" for line in diff.splitlines())
