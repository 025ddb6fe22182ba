"""Writes the table of docs/reliability.md from docs/catalogue.toml and the `row` markers of the tests.

Run `python docs/make_reliability.py`; `tests/test_catalogue.py` checks that the page is current.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


class Row(TypedDict, total=False):
    """One row of the catalogue: the fault or input, what must hold, and the `reason` if no test covers it."""

    number: int
    group: str
    fault: str
    holds: str
    reason: str


def rows() -> list[Row]:
    """The rows of docs/catalogue.toml, in order."""
    data: list[Row] = tomllib.loads((ROOT / "docs" / "catalogue.toml").read_text())["row"]
    return data


def tests_by_row(tests: Path) -> dict[int, list[str]]:
    """Map each row number to its tests (`folder/file.py::test`).

    Reads `@pytest.mark.row(...)` on functions and `pytestmark` in files.
    """
    found: dict[int, list[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        text = path.read_text()
        if "mark.row(" not in text:
            continue
        tree = ast.parse(text)
        whole = {
            number
            for node in tree.body
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "pytestmark" for target in node.targets)
            for number in _numbers(node.value)
        }
        name = path.relative_to(tests)
        for number in whole:
            found.setdefault(number, []).append(str(name))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                for number in {n for decorator in node.decorator_list for n in _numbers(decorator)} - whole:
                    found.setdefault(number, []).append(f"{name}::{node.name}")
    return found


def _numbers(expression: ast.expr) -> list[int]:
    return [
        argument.value
        for node in ast.walk(expression)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "row"
        for argument in node.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, int)
    ]


def table(tests: Path) -> str:
    """The Markdown table: at most three tests per row, then the number of the others."""
    by_row = tests_by_row(tests)
    lines = ["| # | fault or input | what holds | held by |", "|---|---|---|---|"]
    group = ""
    for row in rows():
        if row["group"] != group:
            group = row["group"]
            lines.append(f"| | **{group}** | | |")
        names = by_row.get(row["number"], [])
        held = "<br>".join(f"`{name}`" for name in names[:3])
        if len(names) > 3:
            held += f"<br>and {len(names) - 3} more"
        lines.append(
            f"| {row['number']} | {row['fault']} | {row['holds']} | {held or row.get('reason', '')} |"
        )
    return "\n".join(lines)


def page(text: str, tests: Path) -> str:
    """Return `text` with its table replaced."""
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{table(tests)}\n{END}{after}"


if __name__ == "__main__":
    path = ROOT / "docs" / "reliability.md"
    path.write_text(page(path.read_text(), ROOT / "tests"))
    print("docs/reliability.md written", file=sys.stderr)
