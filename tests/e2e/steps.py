"""Steps that the end-to-end tests share."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from tipoff.testing import RunningUp


async def tipoff(*arguments: str, timeout: float = 60.0) -> tuple[int, str]:
    """Run the command line; (exit code, standard output)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    if process.returncode:
        print(err.decode(), file=sys.stderr)
    return process.returncode or 0, out.decode()


async def tipoff_json(*arguments: str) -> Any:
    code, out = await tipoff(*arguments)
    assert code == 0, out
    return json.loads(out)


def command_lines() -> dict[int, str]:
    """pid -> command line, of every process."""
    found: dict[int, str] = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found[int(path.parent.name)] = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended meanwhile
    return found


def processes_of(state_dir: Path) -> list[str]:
    """Command lines of the processes whose environment or command line names the state directory."""
    return list(pids_of(state_dir).values())


def pids_of(state_dir: Path, part: str = "") -> dict[int, str]:
    """pid -> command line of those processes; `part`: only those whose command line has these words."""
    found: dict[int, str] = {}
    for pid, line in command_lines().items():
        if pid == os.getpid() or not line or part not in line:
            continue
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
            directory = Path(f"/proc/{pid}/cwd").readlink()  # nats-server's command line names no directory
        except OSError:
            continue
        if (
            f"={state_dir}/" in environment
            or str(state_dir) in line
            or directory.is_relative_to(state_dir.resolve())
        ):
            found[pid] = line
    return found


async def seats_and_sessions(up: RunningUp) -> int:
    status = await up.status()
    return len(status["sessions"]) + sum(len(d["seats"]) for d in status["deployments"])


async def all_given_back(up: RunningUp) -> bool:
    return await seats_and_sessions(up) == 0


def free_port() -> int:
    """A TCP port of loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
