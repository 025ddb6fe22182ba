"""Identifies a process across launcher restarts; a pid is not enough, because pids are reused.

An identity is the pid, the start time (`/proc/PID/stat` field 22, in clock ticks since boot) and the boot it started
in. Where there is no /proc, `ps` tells the start time, to the second.
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
    """One process. `started` is opaque: it differs between any two processes that had the same pid."""

    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.pid}@{self.started}"

    @classmethod
    def parse(cls, text: str) -> Identity | None:
        """The identity that `str` made, or None."""
        found = _NATIVE_ID.fullmatch(text)
        return cls(int(found[1]), found[2]) if found else None


@dataclass(frozen=True, slots=True)
class Stat:
    """From `/proc/PID/stat`: the one-letter state, the parent, the process group, the start in clock ticks."""

    state: str
    parent: int
    group: int
    start: str


def identify(pid: int) -> Identity | None:
    """The process that has this pid now, or None. A zombie counts."""
    if not LINUX:
        return identify_by_ps(pid)
    stat = read_stat(pid)
    return None if stat is None else Identity(pid, f"{boot()}.{stat.start}")


def lives(identity: Identity) -> bool:
    """Whether this process runs: not a later one with its pid, and not a zombie."""
    if not LINUX:
        return identify_by_ps(identity.pid) == identity
    stat = read_stat(identity.pid)
    return stat is not None and stat.state not in "ZX" and identity.started == f"{boot()}.{stat.start}"


def read_stat(pid: int | str) -> Stat | None:
    """The process's `/proc/PID/stat`; None when there is no such process. Linux only."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name in brackets may hold anything, brackets too
    return Stat(fields[0], int(fields[1]), int(fields[2]), fields[19])


@functools.cache
def boot() -> str:
    """Identifies this boot of the machine, from which start times count."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:16]


def identify_by_ps(pid: int) -> Identity | None:
    """`identify` for systems without /proc. Here a zombie counts as gone."""
    answer = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        timeout=5,
        check=False,  # exit code 1 means: no such process
    )
    state, _, started = answer.stdout.strip().partition(" ")
    if not started or state.startswith("Z"):
        return None
    return Identity(pid, "-".join(started.split()))


def group_members(group: int, variable: str) -> list[int]:
    """Pids of a process group's living processes whose environment holds `variable` (NAME=value); Linux only.

    The variable tells the server's children from strangers, in case the group's number was reused. In the middle of
    an exec a process shows no environment; it counts.
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
            continue  # gone meanwhile, or another user's
        if not environment or wanted in environment.split(b"\0"):
            found.append(int(entry))
    return found
