"""A copy of the working tree in which changes are made, and pytest runs in it: the tree itself is never touched."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "shared", "matchmaker_httpd", "matchmaker", "orchestrator_client", "gameserver", "client_sdk", "cli",
    "examples/arena",
)  # fmt: skip
SURVIVED, NOTICED, BAD_USAGE, NO_TESTS = 0, 1, 4, 5
FAST = "not slow and not browser"


@dataclass(frozen=True)
class Run:
    """How a run of pytest ended. `code` is its exit code, None if it was stopped because its time was over."""

    code: int | None
    output: str

    @property
    def failed(self) -> str | None:
        """The first test that failed."""
        for line in self.output.splitlines():
            for word in ("FAILED ", "ERROR "):
                if line.startswith(f"{word}tests/"):
                    # An identifier in brackets may contain " - ", a message may contain brackets.
                    found = re.match(r"\S+?::[^\[\s]+(\[.*?\](?= - |$))?", line.removeprefix(word))
                    return found[0] if found else None
        return None


class Tree:
    """A copy of all files that git knows or would add. Each write gets its own time, or Python might take the
    compiled module from before."""

    def __init__(self, origin: Path, directory: Path) -> None:
        self.root = directory
        self._writes = 0
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=origin, check=True, capture_output=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, names):
            if (origin / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin / name, directory / name)

    def write(self, module: str, source: str) -> None:
        path = self.root / module
        path.write_text(source)
        self._writes += 1
        os.utime(path, (1_000_000_000 + self._writes, 1_000_000_000 + self._writes))

    def pytest(
        self, arguments: list[str], *, seconds: float, tools: Path | None = None, **environment: str
    ) -> Run:
        """Run the fast tests among `arguments` and clean up after them, whatever the change did."""
        mark = uuid.uuid4().hex
        path = [str(self.root / package) for package in PACKAGES] + [str(self.root)]
        path += [str(tools)] if tools is not None else []
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
        command += ["-p", "tests.mutants.plugin", "--tb=no", "-m", FAST, *arguments]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=os.environ | environment | {"PYTHONPATH": os.pathsep.join(path), "TIPOFF_MUTANTS_RUN": mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=seconds)
            return Run(process.returncode, output)
        except subprocess.TimeoutExpired:
            return Run(None, "")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _kill_marked(mark)
            process.wait()

    def imports(self, module: str) -> bool:
        """Whether the changed module can be imported at all."""
        name = dotted(module)
        path = os.pathsep.join(str(self.root / package) for package in PACKAGES)
        run = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            cwd=self.root, env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False,
        )  # fmt: skip
        return run.returncode == 0


def dotted(module: str) -> str:
    """`matchmaker/tipoff_matchmaker/fleet/stop.py` is imported as `tipoff_matchmaker.fleet.stop`."""
    package = next(package for package in PACKAGES if module.startswith(f"{package}/"))
    inside = module.removeprefix(f"{package}/").removesuffix(".py").removesuffix("/__init__")
    return inside.replace("/", ".")


def _kill_marked(mark: str) -> None:
    """End what a run has left: servers that tests started in sessions of their own."""
    wanted = f"TIPOFF_MUTANTS_RUN={mark}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
