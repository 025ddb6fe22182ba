"""The mistakes of a first day: the terminal says what is wrong."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.polling import eventually
from tipoff.new.commands import write_game
from tipoff.testing import running_up


async def test_a_server_that_crashes_is_told_in_the_terminal_of_up(tmp_path: Path) -> None:
    """With its last words, where its developer looks."""
    game = write_game("broken", tmp_path)
    (game / "server.py").write_text("import jsn\n")
    async with running_up(tmp_path / "state", games=game / "games.toml") as up:

        async def told() -> bool:
            return any("a server of broken 1 ended" in line and "jsn" in line for line in up.output)

        await eventually(told, f"the crash told in {up.output}", 10)


@pytest.mark.slow
async def test_watch_ends_when_nobody_reads_it(tmp_path: Path, games_file: Path) -> None:
    """`tipoff watch | head -1`: no traceback, no hanging."""
    async with running_up(tmp_path / "state", games=games_file) as up:
        for form in ("", "--json"):
            command = f"'{sys.executable}' -m tipoff watch {form} --state-dir '{up.state_dir}' | head -1"
            process = await asyncio.create_subprocess_shell(
                command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
            )
            try:
                async with asyncio.timeout(20):
                    out, err = await process.communicate()
            finally:
                if process.returncode is None:
                    process.kill()
            assert out.count(b"\n") == 1
            assert b"Traceback" not in err
