"""The catalogue of faults has a test for every row, or a written reason where one is allowed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

WITHOUT_TEST = {17, 18}
"""They want a larger machine."""


@pytest.fixture
def catalogue(source_tree: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/make_reliability.py."""
    monkeypatch.syspath_prepend(str(source_tree / "docs"))
    sys.modules.pop("make_reliability", None)
    import make_reliability  # pyright: ignore[reportMissingImports] # found by the path of this test

    return make_reliability


def test_every_row_has_a_test_or_an_allowed_reason(catalogue: ModuleType) -> None:
    tested = catalogue.tests_by_row(Path(__file__).parent)
    missing = [
        row["number"]
        for row in catalogue.rows()
        if row["number"] not in tested and not (row["number"] in WITHOUT_TEST and row.get("reason"))
    ]
    assert missing == []


def test_every_marker_names_a_row(catalogue: ModuleType) -> None:
    numbers = {row["number"] for row in catalogue.rows()}
    assert set(catalogue.tests_by_row(Path(__file__).parent)) <= numbers


def test_the_page_has_the_table(catalogue: ModuleType, source_tree: Path) -> None:
    """Run `python docs/make_reliability.py` when this fails."""
    text = (source_tree / "docs/reliability.md").read_text()
    assert catalogue.page(text, Path(__file__).parent) == text
