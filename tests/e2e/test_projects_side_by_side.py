"""Two projects side by side without a flag: each has its ports and its state, and commands find the right one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tipoff.new.commands import write_game

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

_PATIENCE = 60


@pytest.fixture
def environ(tmp_path: Path) -> Mapping[str, str]:
    """A user who has run nothing yet."""
    given = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state home")}
    return {name: value for name, value in given.items() if name not in ("TIPOFF_STATE_DIR", "NATS_HOST")}


def _tipoff(
    *arguments: str, cwd: Path, environ: Mapping[str, str]
) -> Any:  # a coroutine of asyncio's, without a public type
    return asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff",
        *arguments,
        cwd=cwd,
        env=environ,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def command(*arguments: str, cwd: Path, environ: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code, output and errors of one command, run in `cwd`."""
    process = await _tipoff(*arguments, cwd=cwd, environ=environ)
    async with asyncio.timeout(_PATIENCE):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def up_in(project: Path, environ: Mapping[str, str]) -> AsyncIterator[tuple[int, int]]:
    """`tipoff up` run in the project, without an option: the ports of its page and of NATS."""
    process = await _tipoff("up", cwd=project, environ=environ)
    errors = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(_PATIENCE):
            line = (await process.stdout.readline()).decode()
        found = re.search(r"ready\S*  http://127\.0\.0\.1:(\d+)/  nats nats://127\.0\.0\.1:(\d+)", line)
        if found is None:
            raise AssertionError(line + (await errors).decode())
        yield int(found[1]), int(found[2])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(_PATIENCE):
            await process.wait()
            await errors


async def games_of(cwd: Path, environ: Mapping[str, str]) -> set[str]:
    code, out, err = await command("status", "--json", cwd=cwd, environ=environ)
    assert code == 0, err
    return {server["game"] for server in json.loads(out)["deployments"]}


async def test_two_projects_run_side_by_side(tmp_path: Path, environ: Mapping[str, str]) -> None:
    """Ports, state and commands of each; the same ports the next time; outside, the choice is explained."""
    pong, chess = write_game("pong", tmp_path), write_game("chess", tmp_path)
    async with up_in(pong, environ) as first, up_in(chess / "web", environ) as second:
        assert len({*first, *second}) == 4
        assert await games_of(pong, environ) == {"pong"}
        assert await games_of(chess, environ) == {"chess"}
        assert await games_of(chess / "web", environ) == {"chess"}
        code, _, err = await command("play", "--seconds", "0.2", cwd=pong / "web", environ=environ)
        assert code == 0, err
        code, _, err = await command("status", cwd=tmp_path, environ=environ)
        assert code == 1
        assert "2 `tipoff up` run" in err
        assert str(pong) in err
        assert str(chess) in err
        chosen = re.search(rf"{chess}  --state-dir '(.*)'", err)
        assert chosen is not None
        code, out, err = await command(
            "status", "--json", "--state-dir", chosen[1], cwd=tmp_path, environ=environ
        )
        assert {server["game"] for server in json.loads(out)["deployments"]} == {"chess"}
        code, _, err = await command("up", cwd=pong, environ=environ)
        assert code == 1
        assert re.search(rf"in use by another `tipoff up` \(pid \d+, http://127\.0\.0\.1:{first[0]}/\)", err)
    async with up_in(chess, environ) as again:
        assert again == second
        assert await games_of(tmp_path, environ) == {"chess"}  # outside, the only one
        code, _, err = await command("status", cwd=pong, environ=environ)
        assert code == 1
        assert f"no `tipoff up` runs in the project {pong}" in err
    async with up_in(pong, environ) as again:
        assert again == first
