"""Keeps the nats-server of `tipoff up` running, and writing: starts it again when it ends, restarts it when it does not
write although its disk has room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tipoff.up.child_process import exit_text
from tipoff.up.embedded_nats import EmbeddedNats
from tipoff_shared.disk_space import disk_space
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.kv.write_probe import AGAIN, EVERY, WriteProbe
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.retry import Backoff

PATIENCE = 10.0
"""Seconds for which writes fail on a disk with room before nats-server is restarted."""
_FIRST_PAUSE = 30.0
_LONGEST_PAUSE = 600.0
"""Seconds between two restarts for that; doubled with each that did not help."""


@dataclass(slots=True)
class RestartRule:
    """Decides, purely, when a nats-server that does not write is restarted. `now`: monotonic seconds."""

    failing_since: float | None = None
    not_before: float = float("-inf")
    restarts: int = 0

    def restart_now(self, now: float, *, failing: bool, room: bool) -> bool:
        """Whether to restart it now, which then counts as done. `room`: its disk has space."""
        if not failing:
            self.failing_since, self.restarts = None, 0
            return False
        if not room:  # a restart would not help
            self.failing_since = None
            return False
        if self.failing_since is None:
            self.failing_since = now
        if now < max(self.failing_since + PATIENCE, self.not_before):
            return False
        self.not_before = now + min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**self.restarts)
        self.restarts += 1
        self.failing_since = None
        return True


class NatsKeeper:
    """The supervision of one nats-server; `say` tells people in the terminal."""

    def __init__(self, nats: EmbeddedNats, disk: Path, say: Callable[[str], None]) -> None:
        self._nats = nats
        self._disk = disk
        self._say = say
        self._full = ""

    async def keep(self) -> None:
        """Start nats-server again whenever it ends, until cancelled; where it does not start, again and again."""
        pauses = Backoff(0.1)
        while True:
            began = time.monotonic()
            code = await self._nats.process.wait()
            if time.monotonic() - began >= PATIENCE:
                pauses.reset()
            words = f": {self._nats.last_words()}" if code else ""
            self._say(f"nats-server ended ({exit_text(code)}{words}); starting it again")
            while True:
                pauses.failed()
                if pauses.failures > 1:
                    await asyncio.sleep(pauses.pause())
                try:
                    await self._nats.start()
                    break
                except (Unavailable, OSError) as exc:
                    self._say(f"{exc}; trying again")

    async def watch_writes(self, bus: Bus) -> None:
        """Probe the disk and the buckets until cancelled; say what is wrong, once; restart nats-server where that
        helps."""
        probe, rule = WriteProbe(bus, buckets(bus)), RestartRule()
        told = ""
        while True:
            problem = await probe.once()
            room = await self._has_room()
            if bool(problem) is not bool(told):
                self._say(f"{problem}; no player gets a seat" if problem else "NATS writes again")
                told = problem
            if rule.restart_now(time.monotonic(), failing=bool(problem), room=room):
                self._say("NATS does not write though its disk has room: restarting nats-server")
                await self._nats.stop()  # `keep` starts it again
            await asyncio.sleep(AGAIN if problem or not room else EVERY)

    async def _has_room(self) -> bool:
        try:
            full = (await disk_space(self._disk)).problem()
        except OSError:
            return True  # unknown
        if bool(full) is not bool(self._full):
            self._say(
                f"{full}; no new game servers start" if full else f"the disk of {self._disk} has room again"
            )
        self._full = full
        return not full
