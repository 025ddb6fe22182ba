"""Copies a container's output into its log while it runs, and what is missing when it has ended.

The log keeps its limit as those of processes do. How far the output has been read is kept beside the log, together
with the size that the log had: a launcher that was killed may have written more since, which the next one skips. So
every line comes once, over every loss of the engine and restart of the launcher.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from types import TracebackType

import msgspec

from tipoff_launcher.backends import server_log
from tipoff_launcher.backends.docker.engine import Engine, EngineUnavailable
from tipoff_launcher.backends.docker.output import Frames, Position, TerminalEntries
from tipoff_launcher.records import write_whole
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_shared.errors import Malformed
from tipoff_shared.log_writer.process import BoundedLog
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.text import describe

log = logging.getLogger(__name__)

_PAUSE_FIRST = 0.2
_LAST_READ = 20.0
"""Seconds for what is missing when the container has ended."""
_SAVE_AFTER = 1.0
"""Seconds after output until the position is saved."""
_LASTED = 10.0
"""Seconds after which the end of a stream is no failure."""
_REST = 3.0
"""Pause after dropped output, in times of what it took to read: all such containers together get a quarter of the
launcher's time."""


class ContainerLogs:
    """Makes the log of each container of one engine. `max_bytes`, `rate`: as for `LogWriter`."""

    def __init__(self, engine: Engine, *, max_bytes: int, rate: float) -> None:
        self.engine = engine
        self.max_bytes = max_bytes
        self.rate = rate
        self.turn = asyncio.Lock()
        """Held while output is read that is dropped anyway."""

    def log(self, container_id: str, path: Path, on_end: Callable[[], None]) -> ContainerLog:
        """The log of one container, in the file `path`; use it in `async with`. `on_end` is called when the engine ends
        its stream, perhaps because the container has ended."""
        return ContainerLog(self, container_id, path, on_end)


class _Saved(msgspec.Struct):
    """Where reading goes on. `file`, `size`: the log's inode, and its bytes at this position."""

    position: msgspec.Raw
    file: int
    size: int


class ContainerLog:
    """The log of one container. Leaving `async with` ends what `follow` began and saves the position."""

    def __init__(
        self, logs: ContainerLogs, container_id: str, path: Path, on_end: Callable[[], None]
    ) -> None:
        self._logs = logs
        self._engine = logs.engine
        self._id = container_id
        self._path = path
        self._saved_at = path.with_name(f".{path.name}.position")
        self._log = BoundedLog(str(path), logs.max_bytes, logs.rate)
        self._position = Position()
        self._skip = 0
        """Bytes that an earlier launcher has written after it saved its position."""
        self._unsaved = 0
        self._tasks = Tasks(f"log of container {container_id[:12]}")
        self._following: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._terminal = False
        self._on_end = on_end

    async def __aenter__(self) -> ContainerLog:
        """Raises nothing: a log that cannot be written is retried."""
        try:
            self._restore()
        except OSError as exc:
            log.warning("the log of container %s cannot be written: %s", self._id[:12], describe(exc))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._log.close()
        self._save()

    def follow(self, *, terminal: bool) -> None:
        """Copy output from now on, in the background; idempotent. `terminal`: the container has one."""
        self._terminal = terminal
        if self._following is None:
            self._following = self._tasks.start(self._follow(), "follow")

    async def finish(self, *, terminal: bool) -> None:
        """Copy what is missing of a container that has ended. Raises `EngineUnavailable`; any other failure loses the
        end of the log. Cancelling is safe, and so is repeating it."""
        self._terminal = terminal
        await self._tasks.close()  # at a whole entry; nothing is written while it waits
        try:
            async with asyncio.timeout(_LAST_READ):
                await self._read(follow=False)
        except EngineUnavailable:
            raise
        except (OrchestratorError, Malformed, TimeoutError) as exc:
            log.warning("the end of the log of container %s is lost: %s", self._id[:12], describe(exc))
        self._log.close()
        self._save()

    async def _follow(self) -> None:
        def log_first(failures: int, exc: Exception) -> None:
            if failures == 1:
                log.warning("the log of container %s is read again later: %s", self._id[:12], exc)

        async def read(pauses: Backoff) -> None:
            began = time.monotonic()
            try:
                await self._read(follow=True, pauses=pauses)
            finally:
                if time.monotonic() - began > _LASTED:
                    pauses.reset()
            self._on_end()

        await run_forever(
            read, first_pause=_PAUSE_FIRST, retry_on=(OrchestratorError, Malformed), on_failure=log_first
        )

    async def _read(self, *, follow: bool, pauses: Backoff | None = None) -> None:
        """Copy one stream to its end. Raises `OrchestratorError` and `Malformed`."""
        entries = TerminalEntries() if self._terminal else Frames()
        since = self._position.connect()
        async with aclosing(self._engine.output(self._id, since=since, follow=follow)) as pieces:
            async for piece in pieces:
                if pauses is not None:
                    pauses.reset()
                if self._log.dropped and follow:
                    async with self._logs.turn:
                        began = time.monotonic()
                        self._take(entries.feed(piece))
                        await asyncio.sleep((time.monotonic() - began) * _REST)
                else:
                    self._take(entries.feed(piece))
        self._take(entries.end())

    def _take(self, entries: list[bytes]) -> None:
        data = b"".join(map(self._position.take, entries))
        if self._skip:
            data, self._skip = data[self._skip :], max(0, self._skip - len(data))
        now = time.monotonic()
        for begin in range(0, len(data), self._logs.max_bytes):
            self._log.take(data[begin : begin + self._logs.max_bytes], now)
        self._unsaved += len(data)
        if self._unsaved >= self._logs.max_bytes // 2:  # before the log is moved aside twice
            self._save()
        if data and self._timer is None:
            self._set_timer(_SAVE_AFTER)

    def _set_timer(self, delay: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        self._log.resume(now)
        self._save()
        if (due := self._log.due) is not None:
            self._set_timer(max(0.05, due - now))

    def _restore(self) -> None:
        """Go on where an earlier launcher stopped, or begin an empty log. Raises `OSError`."""
        try:
            saved = msgspec.json.decode(self._saved_at.read_bytes(), type=_Saved)
            position = Position.decode(bytes(saved.position))
            now = self._path.stat()
        except (FileNotFoundError, msgspec.DecodeError, UnicodeError, RecursionError, Malformed):
            # An interrupted copy, of an earlier release or with an unreadable position, is repeated from its beginning.
            descriptor = server_log.open_log(self._path)
            try:
                os.ftruncate(descriptor, 0)
            finally:
                os.close(descriptor)
            self._save()
            return
        self._position = position
        if now.st_ino == saved.file:
            self._skip = max(0, now.st_size - saved.size)
            return
        older = self._path.with_name(self._path.name + ".1")
        moved = older.stat() if older.exists() else None
        before = saved.size if moved is not None and moved.st_ino == saved.file else 0
        self._skip = now.st_size + max(0, (moved.st_size if moved is not None else 0) - before)

    def _save(self) -> None:
        """Save the position, unless output is held back that is not in the log yet."""
        if self._log.due is not None or self._skip:
            return
        try:
            found = self._path.stat()
            saved = _Saved(msgspec.Raw(self._position.encode()), found.st_ino, found.st_size)
            write_whole(self._saved_at, msgspec.json.encode(saved))
            self._unsaved = 0
        except OSError as exc:  # the next time, or the launcher after this one repeats a little
            log.debug("the position in the log of container %s is not saved: %s", self._id[:12], exc)
