"""Reading a server's log part after part: every line once and in order, whatever moves the file aside meanwhile."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tipoff_launcher.backends import server_log
from tipoff_launcher.backends.server_log import LogPart, check_cursor, read_part
from tipoff_shared.errors import Malformed
from tipoff_shared.log_writer.process import BoundedLog

LIMIT = 2_000
STEPS = st.lists(st.one_of(st.integers(1, 400), st.just("read")), max_size=60)


def read(path: Path, cursor: str, *, ended: bool = False, max_bytes: int = 300) -> LogPart:
    return read_part(path, cursor, tail=-1, max_bytes=max_bytes, ended=ended)


@given(STEPS, st.integers(40, 700))
def test_every_line_comes_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | str], max_bytes: int
) -> None:
    """While the log writer moves the file aside, or a copy is moved aside; where lines are missing, that is said."""
    path = tmp_path_factory.mktemp("log") / "server.log"
    log = BoundedLog(str(path), LIMIT, 1e9)
    number, cursor, seen, lost = 0, "", [], False
    for step in [*steps, *["read"] * 200]:  # more than the whole log takes
        if isinstance(step, int):
            log.take(f"{number} {'x' * step}\n".encode(), float(number))
            number += 1
        elif step == "read":
            part = read(path, cursor, max_bytes=max_bytes)
            cursor, lost = part.cursor, lost or part.lost
            seen += [line.split()[0] for line in part.lines if line[:1].isdigit()]
    log.close()
    numbers = [int(text) for text in seen]
    assert numbers == sorted(set(numbers))
    if not lost and number:
        assert numbers[-1] == number - 1
        assert numbers == list(range(numbers[0], number))


def test_a_log_that_is_moved_aside_by_copying_goes_on(tmp_path: Path) -> None:
    """As that of a container is: the same file, shorter than before."""
    path = tmp_path / "server.log"
    path.write_text("one\ntwo\n" * 20)
    cursor = read(path, "", max_bytes=10_000).cursor
    assert server_log.rotate(path, 10)
    path.write_text("three\n")
    part = read(path, cursor)
    assert (part.lines, part.lost) == (("three",), True)


def test_a_line_is_shown_when_it_is_whole(tmp_path: Path) -> None:
    """Or when the server has ended, or when it is longer than an answer may be."""
    path = tmp_path / "server.log"
    path.write_text("one\ntw")
    part = read(path, "")
    assert part.lines == ("one",)
    assert read(path, part.cursor).lines == ()
    assert read(path, part.cursor, ended=True).lines == ("tw",)
    path.write_text("one\ntwo\n" + "x" * 300)
    assert read(path, part.cursor).lines == ("two",)
    assert read(path, read(path, part.cursor).cursor, max_bytes=300).lines == ("x" * 300,)


@pytest.mark.parametrize(("tail", "expected"), [(0, ()), (1, ("c",)), (2, ("b", "c")), (9, ("a", "b", "c"))])
def test_without_a_cursor_it_begins_with_the_last_lines(
    tmp_path: Path, tail: int, expected: tuple[str, ...]
) -> None:
    """And goes on after them."""
    path = tmp_path / "server.log"
    path.write_text("a\nb\nc\n")
    part = read_part(path, "", tail=tail, max_bytes=300, ended=False)
    assert part.lines == expected
    with path.open("a") as file:
        file.write("d\n")
    assert read(path, part.cursor).lines == ("d",)


def test_secrets_and_control_characters_stay_out(tmp_path: Path) -> None:
    """A server may print its environment, and may try to move the reader's cursor."""
    path = tmp_path / "server.log"
    path.write_bytes(b"key=C0FFEE \x1b[2J\x1b]0;title\x07red\n\xff\n")
    part = read_part(path, "", tail=-1, max_bytes=300, ended=False, secrets=["c0ffee", ""])
    assert part.lines == ("key=*** ]0;titlered", "\ufffd")


def test_a_log_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    """And one that is gone."""
    path = tmp_path / "server.log"
    assert read(path, "") == LogPart()
    path.write_text("one\n")
    cursor = read(path, "").cursor
    os.unlink(path)
    assert read(path, cursor).lines == ()
    assert read(path, cursor).cursor == cursor


@given(st.text(max_size=60))
def test_a_cursor_from_elsewhere_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    """Whatever its text."""
    path = tmp_path_factory.getbasetemp() / "any.log"
    path.write_text("one\n")
    try:
        check_cursor(text)
    except Malformed:
        return
    assert read(path, text).lines in ((), ("one",))
