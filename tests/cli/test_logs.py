"""Lines of game servers for people: what tipoff's own formats say, tracebacks as Python shows them, no flood."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tipoff.operate.logs import LogLine, LogPrinter, ServerLines, as_json_line, parse_line
from tipoff_orchestrator_client.wire import ServerLog

LOG = ServerLog("pong-1", "pong", "1")
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "/x/tipoff_gameserver/players/dispatch.py", line 148, in _run\n    result = call(*args)\n'
    '  File "/game/server.py", line 15, in on_join\n    self.dotz[player.id] = 1\n'
    "AttributeError: 'Game' object has no attribute 'dotz'"
)
SHOWN = (
    "Traceback (most recent call last):\n"
    '  File "/game/server.py", line 15, in on_join\n    self.dotz[player.id] = 1\n'
    "AttributeError: 'Game' object has no attribute 'dotz'"
)


def logfmt(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


@pytest.mark.parametrize(
    "raw",
    [
        f"timestamp=2026-11-30T12:00:00Z level=error logger=tipoff_gameserver event={logfmt('on_join failed')} "
        f"exception={logfmt(TRACEBACK)}",
        json.dumps(
            {
                "timestamp": "2026-11-30T12:00:00Z",
                "level": "error",
                "logger": "tipoff_gameserver",
                "event": "on_join failed",
                "exception": TRACEBACK,
            }
        ),
    ],
    ids=["logfmt", "json"],
)
def test_a_traceback_is_shown_as_python_shows_it_from_the_games_own_code_on(raw: str) -> None:
    """In whichever format the server logs."""
    line = parse_line(raw, LOG)
    assert (line.text, line.level, line.traceback) == ("on_join failed", "error", SHOWN)
    assert line.at == 1796040000
    console = Console(file=io.StringIO(), width=40)
    LogPrinter(console)(line)
    printed = console.file.getvalue()  # type: ignore[attr-defined] # a StringIO
    assert "pong-1  on_join failed\n    Traceback" in printed
    assert '\n      File "/game/server.py", line 15, in on_join\n' in printed
    assert json.loads(as_json_line(line))["traceback"] == SHOWN


def test_a_fault_of_the_sdk_itself_keeps_its_traceback() -> None:
    """Where no frame is the game's."""
    own = 'Traceback (most recent call last):\n  File "/x/tipoff_gameserver/a.py", line 1, in f\n    g()\nKeyError: 1'
    raw = f"timestamp=2026-11-30T12:00:00Z level=error logger=x event=broken exception={logfmt(own)}"
    assert parse_line(raw, LOG).traceback == own


@pytest.mark.parametrize(
    ("raw", "text", "level", "routine"),
    [
        ("hello world", "hello world", "", False),
        ("level=error not=ours", "level=error not=ours", "", False),
        ("2026-11-30 12:00:00,123 INFO tipoff_gameserver.running: ready", "ready", "info", True),
        ("2026-11-30 12:00:00,123 INFO mygame: ready", "ready", "info", False),
        ("timestamp=x level=info logger=tipoff_gameserver.players event=joined", "joined", "info", True),
        ("timestamp=x level=warning logger=tipoff_gameserver event=slow", "slow", "warning", False),
        ('{"event": 5}', '{"event": 5}', "", False),
        ("{", "{", "", False),
    ],
)
def test_lines_of_all_kinds(raw: str, text: str, level: str, routine: bool) -> None:
    """What a game prints is never routine."""
    line = parse_line(raw, LOG)
    assert (line.text, line.level, line.is_routine) == (text, level, routine)


@given(st.one_of(st.text(), st.text().map("timestamp={}".format), st.text().map('{{"event": {}'.format)))
def test_any_text_is_a_line(raw: str) -> None:
    """And can be printed, also where it looks like markup."""
    line = parse_line(raw, LOG)
    LogPrinter(Console(file=io.StringIO()))(line)
    json.loads(as_json_line(line))


def test_a_server_that_writes_without_end_leaves_room_for_the_others() -> None:
    """200 lines at once, then 20 a second; how many are missing is said, with where to find them."""
    printed: list[LogLine] = []
    said: list[str] = []
    terminal = ServerLines(printed.append, said.append)
    for n in range(1000):
        terminal.show(LogLine("loud", "pong", "1", str(n)), 10.0)
    terminal.show(LogLine("calm", "pong", "1", "hello"), 10.0)
    assert [line.text for line in printed] == [*map(str, range(200)), "hello"]
    assert said == []
    terminal.show(LogLine("loud", "pong", "1", "at last"), 10.06)
    assert said == ["... 800 lines of loud are not shown here; `tipoff logs loud` has them"]
    assert printed[-1].text == "at last"
    terminal.show(LogLine("calm", "pong", "1", "joined", level="info", logger="tipoff_gameserver"), 11.0)
    assert printed[-1].text == "at last"
