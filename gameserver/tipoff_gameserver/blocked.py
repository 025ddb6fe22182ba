"""Says where the game is while it keeps the whole server from running, in a loop or a call that waits.

The event loop stamps the time; a thread of its own looks at the stamp, because nothing else runs meanwhile. What it
finds on the loop's stack below our own call is the game's, and the line of it is told. Otherwise the machine is slow,
and the game is not blamed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from pathlib import Path
from types import FrameType

from tipoff_gameserver.patience import in_development

log = logging.getLogger(__name__)

TOLD_AFTER = 2.0
"""Seconds without the event loop after which it is told; players see the game stand still from the first one on."""
_LOOK_EVERY = 0.5
_PACKAGE = Path(__file__).parent
_CALLERS = (str(_PACKAGE / "clock.py"), str(_PACKAGE / "players" / "dispatch.py"))
"""The modules that call the game."""


def game_is_at(frame: FrameType | None) -> str:
    """The place in the game's own code on the stack that ends with `frame`, in one line; "" where none is. Of what the
    game calls, only the outermost file counts as its own."""
    stack = traceback.extract_stack(frame)
    ours = [number for number, entry in enumerate(stack) if entry.filename in _CALLERS]
    below = (
        [entry for entry in stack[ours[-1] + 1 :] if not entry.filename.startswith(str(_PACKAGE))]
        if ours
        else []
    )
    if not below:
        return ""
    own = [entry for entry in below if entry.filename == below[0].filename]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name}: {own[-1].line}"


class BlockedWatch:
    """Watches the event loop it is started in, until `stop`."""

    def __init__(self, told_after: float = TOLD_AFTER) -> None:
        self._told_after = told_after
        self._beat = 0.0
        self._stopped = threading.Event()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, in the event loop's thread."""
        loop, here = asyncio.get_running_loop(), threading.get_ident()
        self._stamp(loop)
        threading.Thread(target=self._watch, args=(here,), name="blocked watch", daemon=True).start()

    def stop(self) -> None:
        """The thread ends by itself, at once; waiting for it would block. Idempotent."""
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()

    def _stamp(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat = time.monotonic()
        self._timer = loop.call_later(_LOOK_EVERY, self._stamp, loop)

    def _watch(self, thread: int) -> None:
        looked_at = time.monotonic()
        blamed_from = looked_at  # nothing before counts
        told_beat = 0.0
        while not self._stopped.wait(_LOOK_EVERY):
            now, beat = time.monotonic(), self._beat
            if now - looked_at > 3 * _LOOK_EVERY:
                blamed_from = now  # this process did not run (SIGSTOP, a paused machine)
            looked_at = now
            if told_beat and beat != told_beat:
                log.warning("the game goes on, after %.1f s", beat - told_beat)
                told_beat = 0.0
            blocked = now - max(beat, blamed_from)
            if blocked < self._told_after or told_beat or in_development():
                continue
            if place := game_is_at(sys._current_frames().get(thread)):  # documented in spite of its name
                told_beat = beat
                log.warning("the game has not returned for %.1f s, and all wait for it: %s", blocked, place)
