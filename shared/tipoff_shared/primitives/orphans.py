"""Reaps orphans as process 1 of a container: every process whose parent has died becomes a child of that one."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

_EVERY = 5.0


def reap_as_process_1() -> None:
    """Reap orphans in a thread until the process ends, if it is process 1; else do nothing."""
    if os.getpid() == 1:
        threading.Thread(target=_reap_forever, name="orphans", daemon=True).start()


def reap_ended(before: set[int]) -> set[int]:
    """Reap the children that have ended before the call that returned `before`; those that have ended since.

    A child that this process has started itself is reaped by whoever waits for it, well within the time between two
    calls, so it is not taken away.
    """
    try:
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return set()
    except ChildProcessError:
        return set()
    ended = _zombies()
    for pid in ended & before:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return ended - before


def _reap_forever() -> None:
    ended: set[int] = set()
    while True:
        time.sleep(_EVERY)
        ended = reap_ended(ended)


def _zombies() -> set[int]:
    """The children of this process that have ended and are not reaped."""
    found: set[int] = set()
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, parent = (
                Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            )
            if state == "Z" and int(parent) == os.getpid():
                found.add(int(entry))
    return found
