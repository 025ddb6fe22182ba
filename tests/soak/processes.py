"""Reads from /proc what a process uses, and which game servers of a directory run (Linux)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_STATUS = re.compile(r"^(VmRSS|RssAnon|Threads):\s+(\d+)", re.MULTILINE)
_SERVER_COMMAND = b"tipoff_arena.server"


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process used at one moment: `rss` and `anonymous` memory in MB (10^6 bytes), open files, threads."""

    at: float
    process: str
    pid: int
    rss: float
    anonymous: float
    files: int
    threads: int


def usage(process: str, pid: int, at: float) -> Usage | None:
    """The present usage of `pid`, None if it has ended."""
    try:
        found = dict(_STATUS.findall(Path(f"/proc/{pid}/status").read_text()))
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    if "VmRSS" not in found:
        return None  # a zombie
    return Usage(
        at,
        process,
        pid,
        int(found["VmRSS"]) * 1024 / 1e6,
        int(found["RssAnon"]) * 1024 / 1e6,
        files,
        int(found["Threads"]),
    )


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running game server."""

    deployment_id: str
    game: str
    pid: int


def game_servers(directory: Path) -> list[ServerProcess]:
    """The running game servers of the launcher whose state is in `directory`, by deployment id."""
    found = []
    for pid, environment in _processes_of(directory).items():
        if environment.get("TIPOFF_DEPLOYMENT_ID") and _SERVER_COMMAND in _command_line(pid):
            found.append(
                ServerProcess(environment["TIPOFF_DEPLOYMENT_ID"], environment.get("TIPOFF_GAME", ""), pid)
            )
    return sorted(found, key=lambda server: server.deployment_id)


def left_over(directory: Path) -> dict[int, str]:
    """pid -> command line of every process whose environment or command line names `directory`."""
    return {
        pid: _command_line(pid).replace(b"\0", b" ").decode(errors="replace")
        for pid in _processes_of(directory)
    }


def _processes_of(directory: Path) -> dict[int, dict[str, str]]:
    """pid -> environment of those processes, without this one."""
    wanted = os.fsencode(directory)
    found: dict[int, dict[str, str]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue  # another user's, or it has ended
        if wanted in environ or wanted in _command_line(int(entry)):
            text = environ.decode(errors="replace")
            found[int(entry)] = dict(item.split("=", 1) for item in text.split("\0") if "=" in item)
    return found


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
