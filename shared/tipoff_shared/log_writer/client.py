"""Starts the writer of a directory's logs (process.py), keeps it running, and makes the pipes it reads."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from tipoff_shared.log_writer.process import find_pipes
from tipoff_shared.primitives.retry import Backoff, run_forever
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.waiting import wait_for_event

log = logging.getLogger(__name__)

MAX_BYTES = 10 * 1024 * 1024
RATE = 1024 * 1024

_PROCESS = Path(__file__).with_name("process.py")
_ERRORS = ".log_writer.errors"
_FIRST_PAUSE = 0.05
_PATIENCE = 2.0
"""Seconds to wait for the last output of a process that has ended."""
_PIPE_BYTES = 256 * 1024
"""What a process may write while nothing is read; 64 such pipes are a quarter of what Linux gives one user."""
_F_SETPIPE_SZ = 1031
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")


class LogWriter:
    """The writer of the logs in `root` and in its subdirectories, during `async with`.

    Each log and its previous part (`.1`) hold at most `max_bytes`. A process that writes more than `rate` bytes a
    second for long loses output; the log says how much. Leaving the block, or this process's death, does not disturb
    the processes: the writer goes on until the last of them has ended, or until another `LogWriter` of the directory
    takes over.
    """

    def __init__(self, root: Path, *, max_bytes: int = MAX_BYTES, rate: int = RATE) -> None:
        self._root = root.absolute()
        self._max_bytes = max_bytes
        self._rate = rate
        self._tasks = Tasks("log writer")
        self._owner: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: dict[bytes, asyncio.Event] = {}
        self._held: dict[bytes, int] = {}
        """Pipes that the process has not opened yet: when nobody has a pipe open, what is in it is lost."""

    async def __aenter__(self) -> LogWriter:
        """Raises `OSError`."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._start()
        self._tasks.start(self._keep(), "process")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._tasks.close()
        self._close()
        for pipe in list(self._held):
            self._release(pipe)
        if self._process is not None and not find_pipes(str(self._root)):  # it ends at once
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _PATIENCE)

    @property
    def pid(self) -> int | None:
        """The process, None before it is started."""
        return None if self._process is None else self._process.pid

    def open(self, path: Path) -> int:
        """A descriptor for the output of a new process, which ends up in the log `path`. Close it when the process has
        it. Raises `OSError`."""
        pipe = pipe_of(path)
        new = pipe.with_name(pipe.name + ".new")
        new.unlink(missing_ok=True)
        os.mkfifo(new, 0o600)
        # Both ends: a process that holds its own reading end never gets SIGPIPE, and can start before it is read.
        descriptor = os.open(new, os.O_RDWR | os.O_CLOEXEC)
        new.rename(pipe)  # only now: the writer removes a pipe that no process has open
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):  # this user has many pipes
                fcntl.fcntl(descriptor, _F_SETPIPE_SZ, _PIPE_BYTES)
        name = self._name(pipe)
        self._release(name)
        self._held[name] = os.dup(descriptor)
        self._tell(name + b"\0")
        return descriptor

    def _tell(self, message: bytes) -> None:
        if self._owner is None:
            return  # the next writer searches the directory for pipes
        with contextlib.suppress(OSError):
            if self._owner.send(message) == len(message):
                return
        with contextlib.suppress(OSError):
            self._owner.shutdown(socket.SHUT_RDWR)  # it has died or it hangs, so start another one

    async def finished(self, path: Path) -> bool:
        """Wait until all output of an ended process is in its log; False after two seconds, when something that it
        started still runs. Cancelling is safe."""
        pipe = pipe_of(path)
        if not pipe.exists():
            return True
        name = self._name(pipe)
        ended = self._ended.setdefault(name, asyncio.Event())
        try:
            return await wait_for_event(ended, _PATIENCE)
        finally:
            self._ended.pop(name, None)

    async def _keep(self) -> None:
        await run_forever(self._serve, first_pause=_FIRST_PAUSE, retry_on=OSError)

    async def _serve(self, pauses: Backoff) -> None:
        """Hear what the process says, until it dies."""
        if self._owner is None:
            self._start()
        assert self._owner is not None
        received = b""
        try:
            while data := await asyncio.get_running_loop().sock_recv(self._owner, 65536):
                pauses.reset()
                *messages, received = (received + data).split(b"\0")
                for message in messages:
                    what, pipe = message[:1], message[1:]
                    if what == b"+":
                        self._release(pipe)
                    elif (event := self._ended.pop(pipe, None)) is not None:
                        event.set()
            log.warning("the log writer of %s died; starting it again", self._root)
        finally:
            self._close()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs, (self._root / _ERRORS).open("wb") as errors:  # for the traceback of a fault
            ours.setblocking(False)
            try:
                process = subprocess.Popen(
                    [
                        sys.executable,
                        "-I",
                        "-S",
                        str(_PROCESS),
                        str(self._max_bytes),
                        str(self._rate),
                    ],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    cwd=self._root,
                    env={name: os.environ[name] for name in _INHERITED if name in os.environ},
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        # It may outlive this object, so no event loop can wait for it.
        threading.Thread(target=process.wait, name="log writer", daemon=True).start()
        self._process, self._owner = process, ours

    def _name(self, pipe: Path) -> bytes:
        """The pipe's path for the process, whose working directory is `root`."""
        return os.fsencode(os.path.relpath(pipe, self._root))

    def _release(self, pipe: bytes) -> None:
        if (held := self._held.pop(pipe, None)) is not None:
            os.close(held)

    def _close(self) -> None:
        if self._owner is not None:
            self._owner.close()
            self._owner = None


def pipe_of(path: Path) -> Path:
    """The pipe of a log."""
    return path.with_name(f".{path.name}.pipe")
