"""`tipoff up --reload`: a game's servers are restarted when its files change."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

import tipoff
from tests.polling import eventually
from tipoff.new.commands import write_game
from tipoff.testing import RunningUp, running_up
from tipoff.up.reload import SourceFiles, syntax_error
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, ProcessSpec

FILES = (
    "games.toml",
    "shared.py",
    "pong/server.py",
    "pong/rules.py",
    "pong/levels.json",
    "chess/bin/chess",
    "readme.txt",
)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path


def sources(project: Path, *include: str) -> SourceFiles:
    pong = Game("pong", "1", process=ProcessSpec(["python", "pong/server.py", "--fast"]))
    chess = Game("chess", "2", process=ProcessSpec(["./bin/chess"], cwd="chess"))
    return SourceFiles(project / "games.toml", [pong, chess], include)


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        ("pong/server.py", ["pong"]),
        ("pong/rules.py", ["pong"]),
        ("pong/new/deeper.py", ["pong"]),
        ("chess/bin/chess", ["chess"]),
        ("chess/bin/helper.py", ["chess"]),
        ("shared.py", ["pong", "chess"]),
        ("pong/levels.json", []),  # the game may have written it
        ("readme.txt", []),
    ],
)
def test_a_change_concerns_the_game_whose_code_it_is(project: Path, changed: str, names: list[str]) -> None:
    assert [game.name for game in sources(project).concerned([project / changed])] == names


def test_further_patterns_may_be_asked_for(project: Path) -> None:
    assert [game.name for game in sources(project, "*.json").concerned([project / "pong/levels.json"])] == [
        "pong"
    ]


def test_code_outside_the_project_is_watched_too(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By the game's working directory; nothing is watched twice."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "main.py").write_text("")
    game = Game("go", "1", process=ProcessSpec(["python", "main.py"], cwd=str(elsewhere)))
    inside = Game("pong", "1", process=ProcessSpec(["python", "server.py"], cwd="pong"))
    found = SourceFiles(project / "games.toml", [game, inside])
    assert set(found.roots) == {project.resolve(), elsewhere.resolve()}
    assert [game.name for game in found.concerned([elsewhere / "x.py"])] == ["go"]


def test_a_project_without_processes_is_refused(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"--reload: no game in .* runs as a process"):
        SourceFiles(project / "games.toml", [Game("far", "1", orchestrator="edgegap")])


def test_a_syntax_error_is_shown_as_python_shows_it(tmp_path: Path) -> None:
    good, bad, gone, other = (tmp_path / name for name in ("a.py", "b.py", "c.py", "d.txt"))
    good.write_text("x = 1\n")
    bad.write_text("x = (\n")
    other.write_text("x = (")
    assert syntax_error([good, gone, other]) == ""
    told = syntax_error([good, bad])
    assert f'File "{bad}", line 1' in told
    assert "SyntaxError: '(' was never closed" in told


def test_a_file_with_null_bytes_is_shown_too(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"x = 1\0")
    assert "null bytes" in syntax_error([tmp_path / "a.py"])


async def width(up: RunningUp) -> int:
    """The x of a new player's dot, which is half of the game's WIDTH."""
    async with tipoff.connect(up.url, game="dots", version="1") as player:
        dots = json.loads(await asyncio.wait_for(player.receive(), 10))
        return max(int(dot["x"]) for dot in dots)


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_who_plays_is_in_the_new_code_at_once(tmp_path: Path) -> None:
    """A change, a syntax error that harms nobody, its correction; also after a change that crashes."""
    write_game("dots", tmp_path)
    server = tmp_path / "dots/server.py"
    code = server.read_text()
    async with running_up(
        tmp_path / "state", games=tmp_path / "dots/games.toml", arguments=("--reload",)
    ) as up:

        async def said(text: str) -> None:
            await eventually(lambda: any(text in line for line in up.output), text, 20)

        assert await width(up) == 320
        async with tipoff.connect(up.url, game="dots", version="1") as player:
            began = time.monotonic()
            server.write_text(code.replace("WIDTH, HEIGHT, SPEED = 640", "WIDTH, HEIGHT, SPEED = 100"))
            await asyncio.wait_for(player.ended(), 10)
        assert await width(up) == 50
        print(f"from the edit to playing: {time.monotonic() - began:.2f} s")
        await said("server.py changed: dots 1 restarts (")
        await said("dots 1 is ready again")

        server.write_text(code.replace("import json", "import json("))
        await said("server.py changed, and cannot be loaded; the servers that run go on")
        await said("SyntaxError")
        assert await width(up) == 50

        server.write_text("raise SystemExit('no such level')\n")
        await said("no such level")
        server.write_text(code)
        assert await width(up) == 320
