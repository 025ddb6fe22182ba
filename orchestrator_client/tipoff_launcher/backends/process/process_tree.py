"""Finds and ends what a server has started, also what has left its session and its process group. Linux only.

A server is a "subreaper" (prctl(2); exec_gate.py makes it one): a process whose parent has died becomes a child of the
server, so that all of it stays in the server's tree while the server lives. When the server itself dies, what is left
goes to the launcher, if that is a subreaper as well, else to the init process. So three looks find it:

* `Family`: the tree as it was at the last look, every few seconds and before a stop;
* `marked`: processes whose environment still names the server;
* `Children`: what the launcher has got as a child since its last look, without having started it.

Elsewhere than on Linux, what has left the process group is not found.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from tipoff_launcher.backends.process.identity import LINUX, Identity, Stat, boot, read_stat

log = logging.getLogger(__name__)

MARKER = "TIPOFF_LAUNCHER_SERVER"
"""The environment variable that names a server uniquely: the id of the state directory, a dot, the deployment id."""

_PR_SET_CHILD_SUBREAPER = 36
_ROUNDS = 5
"""How often what is killed is looked for again: it may fork meanwhile."""

Table = Mapping[int, Stat]


def processes() -> Table:
    """All processes of this machine (or of this container), by pid; empty elsewhere than on Linux."""
    if not LINUX:
        return {}
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return {pid: stat for pid in pids if (stat := read_stat(pid)) is not None}


def descendants(roots: Iterable[int], table: Table) -> set[int]:
    """The living processes below `roots`."""
    children: dict[int, list[int]] = {}
    for pid, stat in table.items():
        children.setdefault(stat.parent, []).append(pid)
    found: set[int] = set()
    ahead = [child for root in roots for child in children.get(root, ())]
    while ahead:
        pid = ahead.pop()
        if pid not in found:
            found.add(pid)
            ahead += children.get(pid, ())
    return {pid for pid in found if table[pid].state not in "ZX"}


def marked(marker: str) -> set[int]:
    """The living processes of this user whose environment has `marker` (NAME=value)."""
    wanted = marker.encode()
    found: set[int] = set()
    for entry in os.listdir("/proc") if LINUX else ():
        if entry.isdigit():
            with contextlib.suppress(OSError):  # gone, or another user's
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.add(int(entry))
    return found


class Family:
    """What one server has started, as far as is known. It counts by identity, because pids are reused."""

    def __init__(self, leader: Identity, marker: str) -> None:
        self._leader = leader
        self._marker = marker
        self._known: set[Identity] = set()

    def look(self, table: Table) -> None:
        """Take in what lives below the server and below what was known before."""
        roots = [known.pid for known in (self._leader, *self._known) if _is(known, table)]
        found = {_identity(pid, table) for pid in descendants(roots, table)}
        self._known = {known for known in self._known if _is(known, table)} | found

    def outside(self, group: int, table: Table) -> list[int]:
        """The pids of those that live outside the process group."""
        return [
            known.pid
            for known in self._known
            if _is(known, table) and table[known.pid].state not in "ZX" and table[known.pid].group != group
        ]

    def kill(self) -> None:
        """Kill all of it, after the server has ended, and what it starts meanwhile."""
        for _ in range(_ROUNDS):
            table = processes()
            self.look(table)
            left = {known.pid for known in self._known if table[known.pid].state not in "ZX"}
            left |= marked(self._marker)
            if not left:
                return
            for pid in left:
                send(pid, signal.SIGKILL)


class Children:
    """The children of this process: those it has started (`own`), and those it has inherited."""

    def __init__(self, own: Callable[[], Collection[int]]) -> None:
        self._own = own
        self._inherited: set[int] = set()

    def look(self, table: Table) -> None:
        """Reap inherited children that have ended, and remember those that live."""
        inherited = self._find(table)
        for pid in inherited:
            if table[pid].state in "ZX":
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        self._inherited = {pid for pid in inherited if table[pid].state not in "ZX"}

    def kill_new(self) -> None:
        """Kill what was inherited since the last look: what a server that has just died has left."""
        for _ in range(_ROUNDS):
            table = processes()
            new = {pid for pid in self._find(table) if table[pid].state not in "ZX"} - self._inherited
            for pid in new:
                log.info("process %d, which a server has left, is killed", pid)
                send(pid, signal.SIGKILL)
            if not new:
                break
        self.look(processes())

    def _find(self, table: Table) -> set[int]:
        own, me = self._own(), os.getpid()
        return {pid for pid, stat in table.items() if stat.parent == me and pid not in own}


def become_subreaper() -> bool:
    """Get the orphans of all descendants as children; False where the system cannot do that."""
    if not LINUX:
        return False
    done: int = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if done != 0:
        log.warning("what a crashed server leaves outside its process group may live on: no subreaper here")
    return done == 0


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process, if it is there and ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _identity(pid: int, table: Table) -> Identity:
    return Identity(pid, f"{boot()}.{table[pid].start}")


def _is(identity: Identity, table: Table) -> bool:
    return identity.pid in table and _identity(identity.pid, table) == identity
