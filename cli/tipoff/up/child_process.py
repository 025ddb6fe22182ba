"""Runs one process of `tipoff up`: starts it, starts it again when it dies, stops it in time."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tipoff_shared.log_writer.client import LogWriter

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_LIVED = 5.0
"""Seconds after which a start counts as a success."""
_LOOP = 60.0
_LOOP_DEATHS = 3
"""So many deaths within so many seconds are a restart loop."""
_REPEAT_AFTER = 30.0
"""Seconds before an equal end of the same process is told again."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run: `python -m module` with `environment` and no other variables. Its output goes to `log_path`.

    The descriptors in `pass_fds` are open in the process under the same numbers. Processes of one `role` stop
    together.
    """

    name: str
    role: str
    module: str
    environment: Mapping[str, str]
    log_path: Path
    pass_fds: tuple[int, ...] = ()


class ChildProcess:
    """A started process and its restarts. `ChildProcess.start` makes one; its caller awaits `stop` in the end."""

    def __init__(
        self,
        spec: ProcessSpec,
        logs: LogWriter | None,
        process: asyncio.subprocess.Process,
    ) -> None:
        self.spec = spec
        self._logs = logs
        self._process = process
        self._started_at = time.monotonic()
        self._deaths = 0
        self._died_at: deque[float] = deque(maxlen=_LOOP_DEATHS)
        self._told = ("", float("-inf"))
        self._last_words = ""
        self._stopping = False

    @classmethod
    async def start(cls, spec: ProcessSpec, logs: LogWriter | None = None) -> ChildProcess:
        """Start the process. `logs` writes its log, within a bound; without it, the process itself does. Raises
        `OSError` when it cannot be started."""
        return cls(spec, logs, await _spawn(spec, logs))

    @property
    def name(self) -> str:
        """The name in log files and messages."""
        return self.spec.name

    @property
    def fails_to_start(self) -> bool:
        """Whether it died twice in a row within 5 s of its start: another start will not help."""
        return self._deaths >= 2

    @property
    def well(self) -> bool:
        """Whether it runs and, after a death, has lived for 5 s."""
        if self._process.returncode is not None:
            return False
        return not self._deaths or time.monotonic() - self._started_at >= _LIVED

    @property
    def loops(self) -> bool:
        """Whether it is in a restart loop: it has died three times within a minute, whatever it did in between."""
        now = time.monotonic()
        return len(self._died_at) == _LOOP_DEATHS and now - self._died_at[0] < _LOOP

    async def keep(self, say: Callable[[str], None]) -> None:
        """Start the process again whenever it dies, after a pause that grows to 5 s. Returns when `stop` is called.

        Cancelling is safe: the process goes on without being watched.
        """
        while True:
            code = await self._process.wait()
            if self._stopping:
                return
            lived = time.monotonic() - self._started_at
            if self._logs is not None:
                await self._logs.finished(self.spec.log_path)
            self._last_words = self._read_last_words()
            self._deaths = self._deaths + 1 if lived < _LIVED else 0
            self._died_at.append(time.monotonic())
            self._tell(code, say)
            await asyncio.sleep(min(5.0, 0.1 * 2 ** min(self._deaths, 6)))
            try:
                self._process = await _spawn(self.spec, self._logs)
            except OSError as exc:  # no memory, a full disk: try again
                say(f"{self.name} cannot be started: {exc}")
                continue
            self._started_at = time.monotonic()

    def _tell(self, code: int, say: Callable[[str], None]) -> None:
        """Say how it ended and what it said last; the same in a loop only now and then."""
        loop = f"; it is in a restart loop: {_LOOP_DEATHS} times within a minute" if self.loops else ""
        text = f"{self.name} ended ({exit_text(code)}: {self.last_words()}); starting it again{loop}"
        told, at = self._told
        if loop and text == told and time.monotonic() - at < _REPEAT_AFTER:
            return
        self._told = (text, time.monotonic())
        say(f"{text}; its log: {self.spec.log_path}")

    async def stop(self, timeout: float) -> None:
        """Send SIGTERM, and SIGKILL after `timeout` seconds. Idempotent."""
        self._stopping = True
        if self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(timeout):
                await self._process.wait()
        except TimeoutError:
            log.warning("%s did not stop within %.0f s; killing it", self.name, timeout)
            self._process.kill()
            await self._process.wait()

    def last_words(self) -> str:
        """The last three lines that it logged before its latest death, for an error message."""
        return self._last_words or self._read_last_words() or f"it logged nothing ({self.spec.log_path})"

    def _read_last_words(self) -> str:
        """The last three lines since its latest start."""
        try:
            with self.spec.log_path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 20)))
                # Where the line of its start is not in the file, all of the file is newer.
                lines = (
                    file.read()
                    .rpartition(_start_line(self.spec))[2]
                    .decode(errors="replace")
                    .strip()
                    .splitlines()
                )
        except OSError:
            lines = []
        return " | ".join(_event(line) for line in lines[-3:])


async def _spawn(spec: ProcessSpec, logs: LogWriter | None) -> asyncio.subprocess.Process:
    """A new process, whose log has a line that says where its output begins."""
    with open_output(spec.log_path, logs) as out:
        with contextlib.suppress(OSError):
            os.write(out, _start_line(spec))
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            spec.module,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env=spec.environment,
            pass_fds=spec.pass_fds,
            start_new_session=True,  # Ctrl-C reaches only `up`, which stops its processes in order
            preexec_fn=dies_with_parent(),
        )


def _start_line(spec: ProcessSpec) -> bytes:
    return f"[tipoff: {spec.name} starts]\n".encode()


@contextmanager
def open_output(path: Path, logs: LogWriter | None) -> Iterator[int]:
    """A descriptor for the output of a new process, which goes to the log `path`; without `logs`, nothing bounds it. On
    a disk without room for another file name the output is dropped: the process matters more."""
    try:
        if logs is not None:
            out = logs.open(path)
        else:
            out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        log.warning("%s is not written: %s", path, exc)
        out = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        yield out
    finally:
        os.close(out)


def dies_with_parent() -> Callable[[], None] | None:
    """A `preexec_fn` with which Linux kills the child when its parent dies; None on other systems."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_text(code: int) -> str:
    """How a process ended: the name of the signal, or its exit code."""
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _event(line: str) -> str:
    """The event of a line that our logs wrote, without time and place; any other line unchanged."""
    found = re.search(r' event="((?:[^"\\]|\\.)*)"', line)
    return found[1].replace('\\"', '"') if found else line
