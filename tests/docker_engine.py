"""The gate of the Docker tests, and small steps with the engine that they share.

Where no engine answers, such tests are skipped with the reason; with `TIPOFF_TEST_REQUIRE_DOCKER=1` they fail.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

LABEL = "org.tipoff.test"
"""On everything the tests create: what is left over is found by `docker ps -a --filter label=org.tipoff.test`."""


class CommandFailed(AssertionError):
    """A docker command ended with an error; says which, and what it wrote."""


def docker(
    *arguments: str,
    timeout: float = 60.0,
    check: bool = True,
    stdin: str | None = None,
    cwd: Path | None = None,
) -> str:
    """`docker ...`: its standard output, stripped. Raises `CommandFailed` unless `check` is false."""
    done = subprocess.run(
        ["docker", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        input=stdin,
        cwd=cwd,
    )
    if check and done.returncode:
        said = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        raise CommandFailed(f"docker {' '.join(arguments)}: exit code {done.returncode}\n{said}")
    return done.stdout.strip()


@functools.cache
def _why_not() -> str:
    """Why there is no engine to test with; "" when there is one."""
    if shutil.which("docker") is None:
        return "no docker command here"
    try:
        done = subprocess.run(
            ["docker", "version", "--format", "{{.Server.Version}}"],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "the docker engine does not answer within 20 s"
    if done.returncode:
        return f"no docker engine answers: {done.stderr.strip().splitlines()[-1:] or 'no reason given'}"
    return ""


def require_engine() -> None:
    """Skip the test, or fail it, where no engine answers. tests/conftest.py calls it for each test marked `docker`."""
    if not (reason := _why_not()):
        return
    if os.environ.get("TIPOFF_TEST_REQUIRE_DOCKER"):
        pytest.fail(f"{reason}, and TIPOFF_TEST_REQUIRE_DOCKER says that there must be one")
    pytest.skip(reason)


def socket_path() -> str:
    """The engine's socket on this machine."""
    host = os.environ.get("DOCKER_HOST", "")
    return host.removeprefix("unix://") if host.startswith("unix://") else "/var/run/docker.sock"


def remove_containers(*filters: str) -> None:
    """Remove every container that all `filters` (like `label=X`) match, running or not, with its anonymous volumes."""
    arguments = [part for text in filters for part in ("--filter", text)]
    if found := docker("ps", "-aq", *arguments).split():
        docker("rm", "-fv", *found, check=False)


def labels(**extra: str) -> Sequence[str]:
    """`--label` arguments for what a test creates."""
    return [part for name, value in {LABEL: "1", **extra}.items() for part in ("--label", f"{name}={value}")]
