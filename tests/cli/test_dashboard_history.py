"""What a dashboard that opens now shows of the past, and tracebacks as whole texts."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff.dashboard.history import MOST_BYTES, MOST_ERRORS, MOST_LINES, MOST_NOTES, History
from tipoff.dashboard.tracebacks import TracebackCollector
from tipoff.operate.logs import LogLine

SYNTAX = """  File "server.py", line 3
    def
       ^
SyntaxError: invalid syntax"""
MISSING = """Traceback (most recent call last):
  File "/game/server.py", line 3, in <module>
    import maps
ModuleNotFoundError: No module named 'maps'"""


def line(text: str, server: str = "pong-1", level: str = "", traceback: str = "") -> LogLine:
    return LogLine(server, "pong", "1", text, level=level, traceback=traceback)


def errors(history: History) -> list[tuple[str, str, int]]:
    return [(e["text"], e["traceback"], e["count"]) for e in history.snapshot()["errors"]]


@pytest.mark.parametrize("text", [SYNTAX, MISSING])
def test_a_traceback_in_plain_lines_is_one_text(text: str) -> None:
    """What Python prints when a program cannot start; lines of another server come in between."""
    collector = TracebackCollector()
    found = []
    for row in text.splitlines():
        found.append(collector.line("a", row))
        collector.line("b", "  something else")
    assert found[-1] == text
    assert not any(found[:-1])


def test_python_s_own_tracebacks_are_found() -> None:
    """Of this very Python: chained, with notes and carets."""
    try:
        try:
            {}["map"]
        except KeyError as exc:
            raise RuntimeError("no such map") from exc
    except RuntimeError as exc:
        text = "".join(traceback.format_exception(exc))
    collector = TracebackCollector()
    found = [whole for row in text.splitlines() if (whole := collector.line("a", row))]
    assert found[-1].startswith("Traceback")
    assert found[-1].endswith("RuntimeError: no such map")


def test_a_line_that_ends_no_traceback_is_no_error() -> None:
    """Somebody printed the first line of one."""
    history = History()
    for text in (
        "Traceback (most recent call last):",
        "the game goes on, well",
        "ValueError: not of a traceback",
    ):
        history.line(line(text), 0.0, 0.0)
    assert errors(history) == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=30) | st.sampled_from(MISSING.splitlines())))
)
def test_no_line_is_too_strange(lines: list[tuple[str, str]]) -> None:
    """Whatever servers write."""
    history = History()
    for server, text in lines:
        history.line(line(text, server), 0.0, 0.0)
    assert len(history.snapshot()["lines"]) == len(lines)


def test_equal_errors_are_one_with_a_count() -> None:
    """A tick that fails thirty times a second is one error; that of another text is another one, and the latest."""
    history = History()
    for _ in range(3):
        events = history.line(line("tick failed", level="error", traceback=MISSING), 0.0, 7.0)
    history.line(line("map not found", level="error"), 0.0, 8.0)
    assert errors(history) == [("tick failed", MISSING, 3), ("map not found", "", 1)]
    assert [name for name, _ in events] == ["error", "line"]
    assert events[0][1]["at"] == 7.0


def test_a_warning_with_a_traceback_is_an_error_and_one_without_is_none() -> None:
    """The SDK logs what a callback raised in the level that fits the consequence."""
    history = History()
    history.line(line("slow", level="warning"), 0.0, 0.0)
    history.line(line("on_join raised", level="warning", traceback=MISSING), 0.0, 0.0)
    assert errors(history) == [("on_join raised", MISSING, 1)]


def test_a_server_that_writes_without_end_leaves_room_for_others() -> None:
    """Its lines beyond a rate are counted, and the count is said with its next line."""
    history = History()
    for _ in range(5000):
        history.line(line("loud", "loud-1"), 0.0, 0.0)
    assert history.line(line("quiet", "quiet-1"), 0.0, 0.0)
    shown = history.snapshot()["lines"]
    assert len(shown) < MOST_LINES
    assert shown[-1]["deployment_id"] == "quiet-1"
    note, more = history.line(line("loud again", "loud-1"), 60.0, 0.0)
    assert (
        note[1]["text"]
        == f"... {5000 - len(shown) + 1} lines are left out here; `tipoff logs loud-1` has them"
    )
    assert more[1]["text"] == "loud again"


def test_an_error_is_told_also_where_its_line_is_left_out() -> None:
    """Errors are few and matter; lines are many."""
    history = History()
    for _ in range(5000):
        history.line(line("loud"), 0.0, 0.0)
    events = history.line(line("tick failed", level="error"), 0.0, 0.0)
    assert [name for name, _ in events] == ["error"]


def test_the_past_is_bounded() -> None:
    """In lines, bytes, errors and notes; the newest stay."""
    history = History()
    for number in range(2 * MOST_LINES):
        history.line(
            line(f"{number} " + 20_000 * "x", level="error", traceback=40_000 * "y"), float(number), 0.0
        )
        history.note(f"note {number}", 0.0)
    past = history.snapshot()
    assert 0 < sum(len(shown["text"]) + len(shown["traceback"]) for shown in past["lines"]) <= MOST_BYTES
    assert past["lines"][-1]["text"].startswith(f"{2 * MOST_LINES - 1} ")
    assert len(past["errors"]) <= MOST_ERRORS
    assert len(past["notes"]) == MOST_NOTES
    assert past["notes"][-1]["text"] == f"note {2 * MOST_LINES - 1}"
    small = History()
    for number in range(2 * MOST_LINES):
        small.line(line(str(number)), float(number), 0.0)
    assert len(small.snapshot()["lines"]) == MOST_LINES
