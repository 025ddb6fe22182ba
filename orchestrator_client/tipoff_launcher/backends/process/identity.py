"""Which process is meant: a pid alone does not say it, because pids are used again.

A process is named by its pid, when it started (`/proc/PID/stat` field 22, in clock ticks since boot) and the boot
it started in. Where there is no /proc, `ps` tells when it started, to the second.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LINUX = sys.platform.startswith("linux")

_NATIVE_ID = re.compile(r"(\d{1,10})@(.{1,80})")


@dataclass(frozen=True, slots=True)
class Identity:
    """`started` is opaque: equal for the same process, different for any other that ever had its pid."""

    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.pid}@{self.started}"

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        found = _NATIVE_ID.fullmatch(text)
        return cls(int(found[1]), found[2]) if found else None


@dataclass(frozen=True, slots=True)
class Stat:
    """Of `/proc/PID/stat`: one-letter state, process group, start in clock ticks."""

    state: str
    group: int
    start: str


def identify(pid: int) -> Identity | None:
    """The process that has this pid now, a zombie too; None when there is none."""
    if not LINUX:
        return identify_by_ps(pid)
    stat = read_stat(pid)
    return None if stat is None else Identity(pid, f"{boot()}.{stat.start}")


def lives(identity: Identity) -> bool:
    """Whether this very process runs: not one that got its pid later, not a zombie."""
    if not LINUX:
        return identify_by_ps(identity.pid) == identity
    stat = read_stat(identity.pid)
    return stat is not None and stat.state not in "ZX" and identity.started == f"{boot()}.{stat.start}"


def read_stat(pid: int | str) -> Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything, brackets too
    return Stat(fields[0], int(fields[2]), fields[19])


@functools.cache
def boot() -> str:
    """Names this boot of the machine: start times count from it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:16]


def identify_by_ps(pid: int) -> Identity | None:
    """For systems without /proc. Zombies count as gone."""
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        timeout=5,
        check=False,  # not found is an answer
    )
    state, _, started = answer.stdout.strip().partition(" ")
    if not started or state.startswith("Z"):
        return None
    return Identity(pid, "-".join(started.split()))


def group_members(group: int, variable: str) -> list[int]:
    """Living processes of a process group whose environment holds `variable` (NAME=value): Linux alone knows.

    The variable tells our server's children from strangers, should the group's number have been used again. In the
    middle of an exec a process shows no environment at all; it counts.
    """
    if not LINUX:
        return []
    wanted = variable.encode()
    found: list[int] = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        stat = read_stat(entry)
        if stat is None or stat.group != group or stat.state in "ZX":
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except (OSError, ValueError):
            continue  # gone meanwhile, or another user's: not ours
        if not environment or wanted in environment.split(b"\0"):
            found.append(int(entry))
    return found
