"""The emulator as its own process: `python -m tipoff_edgegap_emulator`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.edgegap_emulator.emulator_account import GAMES


async def start(tmp_path: Path, **variables: str) -> asyncio.subprocess.Process:
    (tmp_path / "games.toml").write_text(GAMES)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tipoff_edgegap_emulator"),
        cwd=tmp_path,
        env=os.environ | {"TIPOFF_EDGEGAP_EMULATOR_PORT": "0"} | variables,
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


async def test_a_setting_that_cannot_be_used_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """No traceback, and not the value: it may be a secret in the wrong variable."""
    process = await start(tmp_path, TIPOFF_EDGEGAP_EMULATOR_PORT="canary")
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    assert process.returncode == 2
    assert said.decode().startswith("tipoff edgegap-emulator: TIPOFF_EDGEGAP_EMULATOR_PORT: ")
    assert said.count(b"\n") == 1
    assert b"canary" not in said


@pytest.mark.slow
async def test_it_listens_until_sigterm(tmp_path: Path) -> None:
    """Its log names the address; exit code 0."""
    process = await start(tmp_path)
    assert process.stderr is not None
    assert process.stdout is not None
    async with asyncio.timeout(20):
        said = b""
        while b"the emulated Edgegap API is at" not in said:
            said = await process.stderr.readline() or await process.stdout.readline()
            assert said, "it ended"
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
