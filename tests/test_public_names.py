"""`import tipoff` has everything that a game needs, and type checkers see exactly what is there."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import tipoff
import tipoff_client_sdk
import tipoff_gameserver
from tipoff_shared import errors

SNIPPET = """
import tipoff

class Duel(tipoff.Game):
    def on_join(self, player: tipoff.ServerPlayer) -> None:
        player.send(b"welcome")

server = tipoff.GameServer(Duel())

async def play() -> None:
    try:
        async with tipoff.connect("http://localhost", game="duel", version="1") as player:
            seen: tipoff.ClientPlayer = player
            await seen.send(b"hello")
    except tipoff.SlowDown as exc:
        print(exc.retry_after)
    wrong: int = tipoff.connect_threaded("http://localhost", game="duel", version="1")

tipoff.NoSuchName
"""


def test_every_name_is_there() -> None:
    """And a name that is not says so."""
    for name in tipoff.__all__:
        assert getattr(tipoff, name) is not None, name
    assert dir(tipoff) == sorted(tipoff.__all__)
    assert tipoff.ClientPlayer is tipoff_client_sdk.Player
    assert tipoff.ServerPlayer is tipoff.Player is tipoff_gameserver.Player
    with pytest.raises(AttributeError, match="no attribute 'NoSuchName'"):
        getattr(tipoff, "NoSuchName")  # noqa: B009 # type checkers know that it is not there


def test_type_checkers_see_the_same_names() -> None:
    """The imports that only they read are those of `__all__`."""
    tree = ast.parse(Path(tipoff.__file__).read_text())
    seen = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tipoff_")
        for alias in node.names
    }
    assert seen == set(tipoff.__all__)


@pytest.mark.parametrize("module", ["tipoff_shared.errors", "tipoff_client_sdk.errors", "tipoff_gameserver"])
def test_every_exception_that_reaches_a_game_is_among_them(module: str) -> None:
    """Also one that is added later."""
    found = importlib.import_module(module)
    exceptions = {
        name
        for name, value in vars(found).items()
        if isinstance(value, type) and issubclass(value, Exception) and not name.startswith("_")
    }
    assert exceptions
    assert exceptions <= set(tipoff.__all__)


def test_a_name_whose_package_is_missing_names_the_extra() -> None:
    """Not a traceback about a package that the user has never heard of."""
    code = (
        "import sys; sys.modules['websockets'] = None; sys.modules['nats'] = None\n"
        "import tipoff; tipoff.TipoffError\n"
        "try: tipoff.connect\nexcept ImportError as exc: print(exc)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'tipoff[client]'" in ended.stdout


@pytest.mark.slow
def test_mypy_and_pyright_know_the_names_and_their_types(tmp_path: Path) -> None:
    """A name that is not there, and a wrong type, are errors; nothing else is."""
    (tmp_path / "game.py").write_text(SNIPPET)
    number = {text: n for n, text in enumerate(SNIPPET.splitlines(), 1)}
    wrong = {number["tipoff.NoSuchName"], next(n for text, n in number.items() if "wrong: int" in text)}
    for checker in (["mypy", "--strict"], ["pyright", "--pythonpath", sys.executable]):
        ended = subprocess.run(
            [sys.executable, "-m", *checker, "game.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        found = {
            int(line.split(":")[1])
            for line in ended.stdout.splitlines()
            if "error" in line and "game.py:" in line
        }
        assert found == wrong, ended.stdout + ended.stderr


def test_no_exception_is_left_out_of_the_base_module() -> None:
    """`errors.BY_CODE` holds those that have their own code on the wire."""
    assert {found.__name__ for found in errors.BY_CODE.values()} <= set(tipoff.__all__)
