"""The mistakes of a first day: the terminal says what is wrong."""

from __future__ import annotations

import asyncio
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.polling import eventually
from tipoff.new.commands import write_game
from tipoff.testing import running_up
from tipoff_client_sdk import connect
from tipoff_shared.errors import TipoffError


@pytest.mark.slow
async def test_a_server_that_crashes_is_told_in_the_terminal_of_up(tmp_path: Path) -> None:
    """With its last words, where its developer looks."""
    game = write_game("broken", tmp_path)
    (game / "server.py").write_text("import jsn\n")
    async with running_up(tmp_path / "state", games=game / "games.toml") as up:

        async def told() -> bool:
            return any("a server of broken 1 ended" in line and "jsn" in line for line in up.output)

        await eventually(told, f"the crash told in {up.output}", 10)
        assert not any(line.startswith("ready") for line in up.output)
        assert any(line.startswith("no server of broken 1 has announced itself yet") for line in up.output)


@pytest.mark.slow
async def test_a_game_that_starts_late_is_waited_for_and_told_when_it_plays(tmp_path: Path) -> None:
    """`ready` means that each game can be played; until then the line says `not ready yet`."""
    game = write_game("late", tmp_path)
    server = game / "server.py"
    server.write_text("import time\ntime.sleep(7)\n" + server.read_text())
    async with running_up(tmp_path / "state", games=game / "games.toml") as up:
        assert any(line.startswith("not ready yet  http") for line in up.output)

        async def told() -> bool:
            return "late 1 has a server now" in up.output and "ready: every game has a server" in up.output

        await eventually(told, f"told in {up.output}", 20)
        async with connect(up.url, game="late", version="1"):
            pass


HANGS = {"sleeps": "import time; time.sleep(600)", "loops": "exec('while True: pass')"}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.row(74)
async def test_a_game_that_hangs_is_told_in_the_terminal_of_up(tmp_path: Path) -> None:
    """It blocks its whole server, which cannot say so itself."""
    games = ""
    for name, code in HANGS.items():
        (tmp_path / f"{name}.py").write_text(SERVER % f"def on_join(self, player):\n        {code}")
        games += (
            f'[[game]]\nname = "{name}"\nversion = "1"\nseats = 2\nmin_ready = 1\n'
            f"[game.process]\ncommand = {[sys.executable, f'{name}.py']}\n"
        )
    (tmp_path / "games.toml").write_text(games)
    async with running_up(tmp_path / "state", games=tmp_path / "games.toml") as up:

        async def play(name: str) -> None:
            with suppress(TipoffError):
                async with asyncio.timeout(60), connect(up.url, game=name, version="1") as player:
                    async for _ in player:
                        pass

        def told(name: str) -> bool:
            place = f"the game has not returned for 2.* s, and all wait for it: {name}.py, line"
            killed = f"a server of {name} 1 was stopped and had to be killed"
            return all(any(re.search(text, line) for line in up.output) for text in (place, killed))

        async def all_told() -> bool:
            return all(map(told, HANGS))

        async with asyncio.TaskGroup() as group:
            players = [group.create_task(play(name)) for name in HANGS]
            await eventually(all_told, f"the hanging games told in {up.output}", 60)
            for player in players:
                player.cancel()


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


FAULTS = {
    "join": (
        "def on_join(self, player):\n        raise ValueError('no such map')",
        "ValueError: no such map",
    ),
    "tick": ("def tick(self, server, dt):\n        self.nothing", "has no attribute 'nothing'"),
    "says": ("def on_start(self, server):\n        print('map loaded', flush=True)", "map loaded"),
}
IDLE = "import time\nprint('idling', flush=True)\ntime.sleep(300)\n"
SERVER = "import tipoff\n\nclass Game:\n    %s\n\ntipoff.GameServer(Game(), tick_rate=2).main()\n"


@pytest.mark.slow
async def test_what_goes_wrong_in_a_game_is_shown_in_the_terminal_of_up(tmp_path: Path) -> None:
    """The traceback from the game's own line on, within three seconds; `tipoff logs` shows it later."""
    games = ""
    for name, code in [*((name, SERVER % code) for name, (code, _) in FAULTS.items()), ("idle", IDLE)]:
        (tmp_path / f"{name}.py").write_text(code)
        command = [sys.executable, f"{name}.py"]
        games += (
            f'[[game]]\nname = "{name}"\nversion = "1"\nseats = 2\nmin_ready = 1\n'
            f"[game.process]\ncommand = {command}\n"
        )
    (tmp_path / "games.toml").write_text(games)
    async with running_up(tmp_path / "state", games=tmp_path / "games.toml") as up:
        async with asyncio.timeout(20):
            with suppress(TipoffError):
                async with connect(up.url, game="join", version="1") as player:
                    async for _ in player:
                        pass
        for name, (_, shown) in [
            *FAULTS.items(),
            ("idle", ("", "does idle 1 call `GameServer(...).main()`?")),
        ]:

            async def seen(shown: str = shown) -> bool:
                return any(shown in line for line in up.output)

            await eventually(seen, f"{name} in {up.output}", 3 if name in FAULTS else 10)
        first = next(n for n, line in enumerate(up.output) if "on_join failed" in line)
        assert "Traceback" in up.output[first + 1]
        assert "join.py" in up.output[first + 2]
        assert not any("logger=" in line for line in up.output)
        for arguments, wanted, unwanted in (
            (["join"], "no such map", "map loaded"),
            (["--since", "1m", "--json"], '"game": "says"', "Traceback (most recent call last)\n"),
            (["-f", "tick"], "has no attribute", "no such map"),
        ):
            command = f"'{sys.executable}' -m tipoff logs {' '.join(arguments)} --state-dir '{up.state_dir}'"
            process = await asyncio.create_subprocess_shell(
                f"{command} | head -12" if "-f" in arguments else command,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            async with asyncio.timeout(20):
                out, err = await process.communicate()
            assert (wanted in out.decode(), unwanted in out.decode()) == (True, False), (arguments, out, err)
            assert b"Traceback" not in err


@pytest.mark.slow
async def test_logs_of_an_unknown_game_and_a_quiet_terminal(tmp_path: Path) -> None:
    """One sentence that says where to look; `-q` shows no server's lines."""
    (tmp_path / "says.py").write_text(SERVER % FAULTS["says"][0])
    (tmp_path / "games.toml").write_text(
        '[[game]]\nname = "says"\nversion = "1"\nseats = 2\nmin_ready = 1\n'
        f"[game.process]\ncommand = {[sys.executable, 'says.py']}\n"
    )
    async with running_up(tmp_path / "state", games=tmp_path / "games.toml", arguments=("-q",)) as up:

        async def logs(*arguments: str) -> tuple[int | None, str]:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tipoff",
                "logs",
                *arguments,
                "--state-dir",
                str(up.state_dir),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            async with asyncio.timeout(20):
                out, _ = await process.communicate()
            return process.returncode, out.decode()

        async def printed() -> bool:
            return "map loaded" in (await logs())[1]

        await eventually(printed, "the line is there", 20)
        code, text = await logs("sayz")
        assert (code, text) == (1, "no server of 'sayz' is known here; `tipoff status` shows the servers\n")
        code, text = await logs("--host", "elsewhere")
        assert code == 1
        assert "launcher of host 'elsewhere' does not answer" in text
        assert not any("map loaded" in line for line in up.output)
