"""As somebody who has only the wheel: an empty directory, an empty venv, `pip install`, and a game."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as users get it."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source_tree)],
        check=True,
        capture_output=True,
    )
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def venv(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty venv with the wheel and all its extras."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin/python"), "-m", "pip", "install", "--quiet", f"{wheel}[all]"], check=True)
    return venv


async def run(*command: str | Path, cwd: Path, timeout: float = 60) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(timeout):
            out, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, out.decode()


async def up_in(venv: Path, cwd: Path, *arguments: str) -> tuple[asyncio.subprocess.Process, str]:
    """`tipoff up` in a directory; (process, URL) when it says ready."""
    process = await asyncio.create_subprocess_exec(
        venv / "bin/tipoff", "up", "--port", "0", "--state-dir", str(cwd / ".state"), *arguments,
        cwd=cwd, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(60):
        line = (await process.stdout.readline()).decode()
    assert line.startswith("ready"), line
    return process, line.split()[1]


async def stop(process: asyncio.subprocess.Process) -> None:
    process.terminate()
    async with asyncio.timeout(12):
        await process.communicate()


async def test_the_demo_plays_from_an_empty_directory(venv: Path, tmp_path: Path) -> None:
    process, url = await up_in(venv, tmp_path)
    try:
        code, out = await run(venv / "bin/tipoff", "play", "--url", url, "--seconds", "1", cwd=tmp_path)
        assert code == 0, out
        assert "played by udp" in out
    finally:
        await stop(process)


async def test_a_new_game_plays_and_its_own_test_passes(venv: Path, tmp_path: Path) -> None:
    """`tipoff new`, `tipoff up` where games.toml lies, the 40-line client; then the game's test."""
    code, out = await run(venv / "bin/tipoff", "new", "mygame", cwd=tmp_path)
    assert code == 0, out
    game = tmp_path / "mygame"
    process, url = await up_in(venv, game)
    try:
        code, out = await run(venv / "bin/python", "client.py", url, "2", cwd=game)
        assert code == 0, out
        assert "connected by udp" in out
        assert "at the end" in out
    finally:
        await stop(process)
    await run(venv / "bin/python", "-m", "pip", "install", "--quiet", "pytest", cwd=game)
    code, out = await run(venv / "bin/python", "-m", "pytest", "-q", cwd=game)
    assert code == 0, out


async def test_a_new_duel_plays_and_its_own_tests_pass(venv: Path, tmp_path: Path) -> None:
    """`tipoff new --template duel`: two of its clients play a match with goals."""
    code, out = await run(venv / "bin/tipoff", "new", "pong", "--template", "duel", cwd=tmp_path)
    assert code == 0, out
    game = tmp_path / "pong"
    process, url = await up_in(venv, game)
    try:
        client = (venv / "bin/python", "client.py", url, "3")
        one, two = await asyncio.gather(run(*client, cwd=game), run(*client, cwd=game))
        for code, out in (one, two):
            assert code == 0, out
            assert "connected by udp" in out
            assert "playing [0, 0]" in out
    finally:
        await stop(process)
    await run(venv / "bin/python", "-m", "pip", "install", "--quiet", "pytest", cwd=game)
    code, out = await run(venv / "bin/python", "-m", "pytest", "-q", cwd=game)
    assert code == 0, out


async def test_a_new_game_plays_without_anything_around_it(venv: Path, tmp_path: Path) -> None:
    """`python server.py` stands alone; the same client connects."""
    await run(venv / "bin/tipoff", "new", "mygame", cwd=tmp_path)
    game = tmp_path / "mygame"
    server = await asyncio.create_subprocess_exec(
        venv / "bin/python", "server.py", cwd=game, env=os.environ | {"TIPOFF_LISTEN": "127.0.0.1:17877"},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        code, out = 1, ""
        async with asyncio.timeout(20):
            while code:
                code, out = await run(
                    venv / "bin/python", "client.py", "http://127.0.0.1:17877", "1", cwd=game
                )
        assert "at the end" in out
    finally:
        server.terminate()
        await server.communicate()


@pytest.mark.parametrize("extra", ["client", "gameserver", "matchmaker", "httpd", "launcher"])
async def test_a_role_needs_only_its_extra(wheel: Path, tmp_path: Path, extra: str) -> None:
    """`tipoff[client]` brings no web framework, and every role imports with what its extra brings."""
    module = {
        "client": "tipoff_client_sdk",
        "gameserver": "tipoff_gameserver",
        "matchmaker": "tipoff_matchmaker.__main__",
        "httpd": "tipoff_matchmaker_httpd.__main__",
        "launcher": "tipoff_launcher.__main__",
    }[extra]
    venv = tmp_path / "venv"
    assert await run(sys.executable, "-m", "venv", venv, cwd=tmp_path) == (0, "")
    code, out = await run(
        venv / "bin/pip", "install", "--quiet", f"{wheel}[{extra}]", cwd=tmp_path, timeout=200
    )
    assert code == 0, out
    code, out = await run(venv / "bin/python", "-c", f"import {module}", cwd=tmp_path)
    assert code == 0, out
    if extra in ("client", "gameserver"):
        code, out = await run(venv / "bin/python", "-c", "import fastapi", cwd=tmp_path)
        assert code != 0
