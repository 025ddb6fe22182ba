"""The changes that `make mutants` makes. It runs these tests when it installs mutmut; `make test` has no mutmut."""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("mutmut", reason="installed by `make mutants`")

from tests.mutants.changes import changes_of


def diffs(source: str) -> list[str]:
    source = textwrap.dedent(source)
    return [change.diff(source) for change in changes_of(source)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("await message.ack()", "+ pass"),
        ("self.known[key] = value", "+ pass"),
        ("del self.known[key]", "+ pass"),
        ("raise Unavailable", "+ pass"),
        ("found = self.known.get(key)", "+ found = None"),
        ("return a and b", "+ return a"),
        ("return a and b", "+ return b"),
        ("return a and b", "+ return a or b"),
        ("return a is b", "+ return a is not b"),
        ("return a <= b", "+ return a < b"),
        ("return not a", "+ return a"),
        ("return [x for x in a if x.b]", "+ return [x for x in a if True]"),
        ("return one(a, b)", "+ return one(None, b)"),
        ("return one(a, near=b)", "+ return one(a)"),
        ("return a + 1", "+ return a - 1"),
        ("return a[0]", "+ return a[1]"),
        ("return one('key')", "+ return one('XXkeyXX')"),
    ],
)
def test_a_line_is_changed(line: str, expected: str) -> None:
    assert f"- {line}\n{expected}" in diffs(f"async def f(self, a, b):\n    {line}\n")


def test_guards_are_ignored_and_forced_and_failures_are_not_handled() -> None:
    source = """
        def f(a):
            if a.known:
                return
            try:
                send(a)
            except OSError:
                later(a)
                count(a)
    """
    found = diffs(source)
    assert "- if a.known:\n+ if True:" in found
    assert "- if a.known:\n+ if False:" in found
    assert "- later(a)\n+ raise" in found


@pytest.mark.parametrize(
    "line",
    [
        '"""What it does."""',
        'log.info("a lease of %s is gone", a)',
        "self._log.warning(a)",
        "assert a is not None",
        "def g(x: int | None) -> str | None: ...",
        "import json",
        "raise",
    ],
)
def test_what_does_not_alter_behaviour_is_left_alone(line: str) -> None:
    assert diffs(f"def f(self, a):\n    {line}\n") == []


def test_texts_and_tuning_figures_are_left_alone() -> None:
    found = diffs(
        'def f(a):\n    start(a, f"watch/{a}", pause=3, text="to be read", name="b")\n    return 0.5\n'
    )
    assert found == [
        '- start(a, f"watch/{a}", pause=3, text="to be read", name="b")\n+ pass',
        '- start(a, f"watch/{a}", pause=3, text="to be read", name="b")\n'
        '+ start(None, f"watch/{a}", pause=3, text="to be read", name="b")',
    ]


def test_types_are_left_alone() -> None:
    source = """
        from typing import TYPE_CHECKING
        T = TypeVar("T")
        Both = str | int
        if TYPE_CHECKING:
            other = 1
        class C:
            __slots__ = ("a", "b")
    """
    assert diffs(source) == []


def test_a_condition_over_several_lines_loses_only_its_part() -> None:
    source = """
        def same(a, b):
            return (
                a.x == b.x
                and a.y == b.y
            )
    """
    assert "- and a.y == b.y" in diffs(source)


def test_a_change_says_where_it_is_and_which_lines_a_test_must_run() -> None:
    source = (
        "class C:\n    def f(self, a=1):\n        if a:\n            one(\n                a\n            )\n"
    )
    found = {(change.function, change.kind): sorted(change.lines) for change in changes_of(source)}
    assert found["C.f", "condition always true"] == [3]
    assert found["C.f", "call left out"] == [4, 5, 6]
    assert found["C.f", "number"] == [3, 4, 5, 6], (
        "a default is evaluated before any test runs: the body counts"
    )


def test_every_change_compiles_and_alters_the_module(source_tree: Path) -> None:
    source = (source_tree / "matchmaker/tipoff_matchmaker/fleet/liveness.py").read_text()
    original = ast.dump(ast.parse(source))
    changes = changes_of(source)
    assert len(changes) > 200
    for change in changes:
        assert ast.dump(ast.parse(change.applied_to(source))) != original
        assert change.diff(source)
