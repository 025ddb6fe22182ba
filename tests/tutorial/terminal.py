"""A terminal in which a shell runs: types commands, and waits for what they print."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.polling import eventually_sync
from tests.tutorial.page import GAP

PROMPT = "done-$?> "
_PROMPT = re.compile(r"done-(\d+)> $")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07|\r")


class Terminal:
    """One shell in a terminal of its own. Close it: what runs there ends with it."""

    def __init__(self, name: str, shell: Sequence[str], cwd: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))  # long lines stay whole
        self._process = subprocess.Popen(
            shell, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self._output = ""
        self._from = 0  # where the output begins that no step has read yet
        self._strict = False  # whether the running command must end with success
        self._reader = threading.Thread(target=self._read, name=name, daemon=True)
        self._reader.start()
        self.wait_for_prompt()
        self.type("stty -echo")  # what is typed is not output

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            if not data:
                return
            self._output = _ESCAPES.sub("", self._output + data.decode(errors="replace"))

    def type(self, command: str, *, strict: bool = True) -> None:
        """Wait for the command before, and type this one. `strict`: it must end with success."""
        self.wait_for_prompt()
        self._from = len(self._output)
        self._strict = strict
        os.write(self._master, command.encode() + b"\n")

    def interrupt(self) -> None:
        """Press Ctrl-C. How the command ends then is its own affair."""
        self._strict = False
        os.write(self._master, b"\x03")

    def wait_for_prompt(self) -> None:
        """Until the command has ended. Raises `AssertionError` when it failed and may not."""
        found = eventually_sync(
            lambda: _PROMPT.search(self._output, self._from), f"{self.name}: the command ends", 300
        )
        assert found
        assert found[1] == "0" or not self._strict, f"{self.name}: exit code {found[1]}\n{self.tail()}"

    def expect(self, lines: Sequence[str]) -> None:
        """Until the lines were printed in this order, among others."""
        for line in lines:
            if line.strip() == GAP:
                continue
            pattern = re.compile(".*".join(map(re.escape, re.split(re.escape(GAP), line.strip()))))
            found = eventually_sync(
                lambda pattern=pattern: pattern.search(self._output, self._from), f"{self.name}: {line}", 120
            )
            assert found
            self._from = found.end()

    def tail(self) -> str:
        """The end of all that was printed."""
        return self._output[-6000:]

    def close(self) -> None:
        """End the shell and everything in its session."""
        os.close(self._master)  # hangs up
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
