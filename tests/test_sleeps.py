"""No test sleeps to synchronise: it waits for what happens (`tests/polling.py`, an event), with a deadline.

A sleep is right where time itself is the fault or its rhythm, or where nothing may happen for so long. Such a sleep
says so in a comment on its line. `sleep(0)`, one turn of the event loop, needs none.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_SUPPRESSION = re.compile(r"# *(noqa|type: ignore|pyright: ignore)\S*( [A-Z]+\d+)*")
_POLL = re.compile(r"# *noqa: *ASYNC110")


def unexplained(code: str) -> Iterator[str]:
    """The lines that sleep and do not say why, and the loops that poll."""
    lines = code.splitlines()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.While) and _POLL.search(lines[node.lineno - 1]):
            yield lines[node.lineno - 1].strip()
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "sleep":
            a_turn = bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            text = lines[(node.end_lineno or node.lineno) - 1]
            if not a_turn and "#" not in _SUPPRESSION.sub("", text):
                yield text.strip()


@pytest.mark.slow  # it reads every file
def test_each_sleep_of_a_test_says_what_it_is_for(source_tree: Path) -> None:
    """What it waits for cannot be the reason: that is awaited."""
    found = [
        f"{path.relative_to(source_tree)}: {line}"
        for path in sorted((source_tree / "tests").rglob("*.py"))
        for line in unexplained(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("await asyncio.sleep(0.1)", True),
        ("time.sleep(pause)", True),
        ("await sleep(1)  # noqa: ASYNC110", True),
        (
            "while not done:  # noqa: ASYNC110 # nobody tells\n    await asyncio.sleep(1)  # as a poll does",
            True,
        ),
        ("task = create_task(asyncio.sleep(60))", True),
        ("await asyncio.sleep(0)", False),
        ("await asyncio.sleep(2)  # the outage", False),
        ("await asyncio.sleep(2)  # noqa: ASYNC110  # the outage", False),
        ("time.sleep(0.1)  # noqa: ASYNC251 # what is allowed", False),
        ("SCRIPT = 'time.sleep(1)'", False),
    ],
)
def test_a_sleep_without_a_reason_is_found(code: str, found: bool) -> None:
    assert bool([*unexplained(code)]) is found
