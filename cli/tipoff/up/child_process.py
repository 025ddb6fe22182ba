"""One process of `tipoff up`: started, watched, started again when it dies, stopped in time."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tipoff.embedded_nats import dies_with_parent

log = logging.getLogger(__name__)


class Part:
    """`python -m MODULE` with an environment of its own; its output goes to `logs/NAME.log`.
    Descriptors in `pass_fds` are open in it under the same numbers."""

    def __init__(
        self,
        name: str,
        module: str,
        environment: Mapping[str, str],
        logs: Path,
        *,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.name = name
        self.log_path = logs / f"{name}.log"
        self._module = module
        self._environment = dict(environment)
        self._pass_fds = pass_fds
        self._process: asyncio.subprocess.Process | None = None
        self._started_at = 0.0
        self._log_began = 0
        self._deaths = 0
        self._stopping = False

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    @property
    def failed_to_start(self) -> bool:
        """It died twice in a row without living for 5 s: starting it again will not help."""
        return self._deaths >= 2

    async def start(self) -> None:
        with self.log_path.open("ab") as out:
            self._log_began = out.tell()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environment,
                pass_fds=self._pass_fds,
                start_new_session=True,  # Ctrl-C is for `up` alone, which stops its parts in order
                preexec_fn=dies_with_parent(),
            )
        self._started_at = time.monotonic()

    async def keep(self, say: Callable[[str], None]) -> None:
        """Start it again whenever it dies, after a moment that grows to 5 s; for ever, until cancelled."""
        while True:
            assert self._process is not None
            code = await self._process.wait()
            if self._stopping:
                return
            lived = time.monotonic() - self._started_at
            self._deaths = self._deaths + 1 if lived < 5 else 0
            ending = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            say(f"{self.name} ended ({ending}); starting it again; its log: {self.log_path}")
            await asyncio.sleep(min(5.0, 0.1 * 2**self._deaths))
            await self.start()

    async def stop(self, timeout: float) -> None:
        """SIGTERM, then SIGKILL after `timeout` seconds; idempotent."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(timeout):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not stop within %.0f s; killing it", self.name, timeout)
            process.kill()
            await process.wait()

    def last_words(self) -> str:
        """The last lines that it logged since its latest start, for an error message."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(self._log_began)
                lines = file.read(1 << 20).decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        told = [_event(line) for line in lines[-3:]]
        return " | ".join(told) or f"it said nothing ({self.log_path})"


def _event(line: str) -> str:
    """What a line of our logs says, without its time and place; any other line as it is."""
    found = re.search(r' event="((?:[^"\\]|\\.)*)"', line)
    return found[1].replace('\\"', '"') if found else line
