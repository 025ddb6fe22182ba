"""Tells how much room a disk has, and when that is too little to start anything new."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

LEAST_FREE = 256 * 1024 * 1024
"""Bytes below which a disk counts as nearly full; for small disks it is a twentieth of their size."""
_SHARE = 20


@dataclass(frozen=True, slots=True)
class DiskSpace:
    """The file system of `path`: bytes that this user may still write, and its size."""

    path: Path
    free: int
    total: int

    @property
    def least(self) -> int:
        """Bytes below which this disk counts as nearly full, as long as no setting says otherwise."""
        return min(LEAST_FREE, self.total // _SHARE)

    def problem(self, least: int = LEAST_FREE) -> str:
        """Why nothing new should be started, for people; "" while more than `least` bytes are free (0: always)."""
        if not least or self.free >= min(least, self.total // _SHARE):
            return ""
        return f"the disk of {self.path} is nearly full: {self.free / 2**20:.0f} MiB are free; remove something there"


async def disk_space(path: Path) -> DiskSpace:
    """The present state. Raises `OSError`. In a thread, because a disk of the network may take its time."""
    found = await asyncio.to_thread(os.statvfs, path)
    return DiskSpace(path, found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
