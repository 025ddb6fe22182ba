"""`tipoff up` in directories of any name and for users without a home: players play, or one sentence says why not."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.arena_servers import arena_toml
from tests.certificates import self_signed
from tipoff.testing import running_up
from tipoff_client_sdk import connect

pytestmark = pytest.mark.row(82)

AWKWARD = 'José\'s +@ "home", 100%s [red]$HOME\\\n\t{🎮};#*?'


@pytest.fixture
def without_home(tmp_path: Path) -> Mapping[str, str]:
    """The environment of a user whom the user database does not know."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(
        "import pwd\ndef unknown(uid):\n    raise KeyError(uid)\npwd.getpwuid = unknown\n"
    )
    return {
        "HOME": "",
        "XDG_STATE_HOME": "",
        "TIPOFF_STATE_DIR": "",
        "PYTHONPATH": str(tmp_path / "python"),
        "TIPOFF_GAMES": str(games_in(tmp_path)),
    }


def games_in(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    games = directory / "games.toml"
    games.write_text(arena_toml(seats=2, min_ready=1, max_deployments=1))
    return games


async def tipoff(*arguments: str, environ: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and the whole output of the command line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tipoff",
        *arguments,
        env=os.environ | dict(environ or {}),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    return process.returncode or 0, output.decode()


async def refusal(*arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """The one line with which the command line refuses."""
    code, text = await tipoff(*arguments, environ=environ)
    assert code in (1, 2), text
    assert text.startswith("tipoff"), text
    assert text.count("\n") == 1, text
    return text


@pytest.mark.slow
async def test_a_home_of_every_awkward_character(tmp_path: Path) -> None:
    """Players play, the output shows the path unchanged, and `status` finds the system through HOME."""
    home = tmp_path / AWKWARD
    state = home / ".local" / "state" / "tipoff"
    async with (
        running_up(state, games=games_in(home)) as up,
        connect(up.url, game="arena", version="1", timeout=15),
    ):
        environ = {"HOME": str(home), "XDG_STATE_HOME": "", "TIPOFF_STATE_DIR": ""}
        code, text = await tipoff("status", "--json", environ=environ)
        assert code == 0, text
        assert any("[red]$HOME" in line for line in up.output)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "me@home",
        "c++",
        "José",
        "it's",
        '"quoted"',
        "two\nlines",
        "-dash",
        "$HOME",
        "100%",
        "a,b:c",
        "back\\slash",
        "🎮",
        "/".join(["d" * 60] * 4),
        "/".join(["d" * 200] * 4),
    ],
    ids=ascii,
)
async def test_a_directory_of_any_name(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    async with (
        running_up(directory / "state", games=games_in(directory)) as up,
        connect(up.url, game="arena", version="1", timeout=15),
    ):
        pass


@pytest.mark.slow
async def test_certificates_in_an_awkward_directory(tmp_path: Path) -> None:
    """httpd and the game server read them."""
    games = games_in(tmp_path / AWKWARD)
    certificate, key = self_signed(games.parent)
    arguments = ("--tls-cert", str(certificate), "--tls-key", str(key))
    async with running_up(games.parent / "state", games=games, arguments=arguments) as up:
        assert up.url.startswith("https://")


@pytest.mark.slow
async def test_a_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    games = games_in(tmp_path)
    state = tmp_path / os.fsdecode(b"caf\xe9")
    text = await refusal("up", "--port", "0", "--games", str(games), "--state-dir", str(state))
    assert "caf\\xe9: the path is not UTF-8" in text
    assert not state.exists()


@pytest.mark.parametrize(
    "arguments", [("up", "--port", "0"), ("status",), ("watch",), ("serve", "launcher")], ids=" ".join
)
@pytest.mark.slow
async def test_a_user_without_a_home_reads_one_sentence(
    without_home: Mapping[str, str], arguments: tuple[str, ...]
) -> None:
    text = await refusal(*arguments, environ=without_home)
    assert "no home directory" in text
    assert "STATE_DIR" in text


@pytest.mark.slow
async def test_a_user_without_a_home_names_a_state_directory_and_plays(
    tmp_path: Path, without_home: Mapping[str, str]
) -> None:
    async with (
        running_up(tmp_path / "state", games=games_in(tmp_path), environ=without_home) as up,
        connect(up.url, game="arena", version="1", timeout=15),
    ):
        pass
    assert up.output[-1] == "stopped"
    assert not any("Traceback" in line for line in up.output)
