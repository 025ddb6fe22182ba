"""What `make mutants` decides: its sample, its tests, what it accepts, what it reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants import report
from tests.mutants.accepted import ACCEPTED, Accepted, AcceptedError, parse, read, unmatched
from tests.mutants.covering import covering, stale
from tests.mutants.plugin import lines_to_hex
from tests.mutants.report import Result
from tests.mutants.tree import Run, dotted

ENTRY = """
[[accepted]]
module = "shared/a.py"
function = "A.b"
change = '''
- if one:
+ if True:
'''
reason = "one is
 always true"
"""
GOOD = ENTRY.replace('"one is\n always true"', '"one is always true"')


def test_an_accepted_change_is_read_with_its_reason() -> None:
    assert parse(GOOD) == [Accepted("shared/a.py", "A.b", "- if one:\n+ if True:", "one is always true")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ENTRY, "not TOML"),
        (GOOD.replace('"one is always true"', '"  "'), "say why"),
        (GOOD.replace("reason", "because"), "needs exactly"),
        (GOOD.replace('"one is always true"', "1"), "needs exactly"),
        (GOOD.replace("- if one:", "if one:"), "begins with"),
        (GOOD.replace("- if one:\n+ if True:\n", ""), "begins with"),
        (GOOD + GOOD, "twice"),
        ("[accept]", "unknown"),
    ],
)
def test_a_wrong_entry_is_an_error(text: str, problem: str) -> None:
    with pytest.raises(AcceptedError, match=problem):
        parse(text)


def test_an_entry_of_which_nothing_is_left_is_found() -> None:
    entries = parse(GOOD)
    there = [("shared/a.py", "A.b", "- if one:\n+ if True:")]
    assert unmatched(entries, ["shared/a.py"], there) == []
    assert unmatched(entries, ["shared/a.py"], [("shared/a.py", "A.c", there[0][2])]) == entries
    assert unmatched(entries, ["shared/b.py"], []) == [], "another module says nothing of it"


def test_the_accepted_changes_are_of_lines_that_exist(source_tree: Path) -> None:
    for entry in read(ACCEPTED):
        lines = {line.strip() for line in (source_tree / entry.module).read_text().splitlines()}
        gone = [line for line in entry.change.splitlines() if line[0] == "-" and line[2:] not in lines]
        assert not gone, f"remove it from {ACCEPTED.name}: {entry.module}, {entry.function}"


def test_a_seed_repeats_its_sample() -> None:
    changes = list(range(500))
    assert report.sample(changes, 50, 7) == report.sample(changes, 50, 7) != report.sample(changes, 50, 8)
    assert report.sample(changes, 50, 7) == sorted(set(report.sample(changes, 50, 7)))
    assert len(report.sample(changes, 50, 7)) == 50


@pytest.mark.parametrize("size", [None, 3, 4])
def test_a_sample_is_never_larger_than_the_whole(size: int | None) -> None:
    assert report.sample([1, 2, 3], size, 7) == [1, 2, 3]


def result(outcome: str, by: str = "", module: str = "a.py") -> Result:
    return Result(module, "f", 7, "call left out", "- one()\n+ pass", outcome, by)


def test_the_share_counts_neither_what_is_accepted_nor_a_time_out_as_missed() -> None:
    outcomes = [report.NOTICED, report.TIMED_OUT, report.SURVIVED, report.UNREACHED, report.ACCEPTED]
    assert report.share([result(outcome) for outcome in outcomes]) == 50
    assert report.share([result(report.ACCEPTED)]) is None


def test_the_table_has_a_row_for_each_module_and_one_for_all() -> None:
    results = [result(report.NOTICED), result(report.SURVIVED), result(report.ACCEPTED, module="b.py")]
    assert report.table(results, {"a.py": 30, "b.py": 4}).splitlines()[2:] == [
        "| a.py | 30 | 2 | 1 | 0 | 1 | 0 | 50 % |",
        "| b.py | 4 | 1 | 0 | 0 | 0 | 1 | - |",
        "| all | 34 | 3 | 1 | 0 | 1 | 1 | 50 % |",
    ]


def test_survivors_are_shown_as_diffs_and_accepted_ones_with_their_reasons() -> None:
    results = [result(report.NOTICED), result(report.UNREACHED), result(report.ACCEPTED, "it is equal")]
    text = report.survivors(results)
    assert text == (
        "a.py:7 f: call left out, no fast test runs it\n    - one()\n    + pass\n\n"
        "a.py:7 f: call left out, accepted: it is equal\n    - one()\n    + pass"
    )


KNOWN = {
    "tests/test_a.py": {
        "sha": "1",
        "seconds": {
            "tests/test_a.py::slow": 2.0,
            "tests/test_a.py::quick": 0.1,
            "tests/test_a.py::broken": 0.1,
        },
        "failed": ["tests/test_a.py::broken"],
        "modules": {
            "m.py": {
                "sha": "m1",
                "lines": {
                    "tests/test_a.py::slow": lines_to_hex([3, 70]),
                    "tests/test_a.py::quick": lines_to_hex([3, 4]),
                    "tests/test_a.py::broken": lines_to_hex([3, 4]),
                },
            }
        },
    },
    "tests/test_b.py": {
        "sha": "2",
        "seconds": {},
        "failed": [],
        "modules": {"m.py": {"sha": "m0", "lines": {}}},
    },
}


def test_the_tests_of_a_line_are_those_that_run_it_quickest_first() -> None:
    found = covering(KNOWN, "m.py")
    quick, slow = "tests/test_a.py::quick", "tests/test_a.py::slow"
    assert found.tests([3]) == [quick, slow]
    assert found.tests([4, 5]) == [quick]
    assert found.tests([70]) == [slow]
    assert found.tests([71]) == []
    assert found.tests([]) == [quick, slow]
    assert covering(KNOWN, "other.py").tests([]) == []


@pytest.mark.parametrize(
    ("tests", "modules", "expected"),
    [
        ({"tests/test_a.py": "1", "tests/test_b.py": "2"}, {"m.py": "m1"}, []),
        ({"tests/test_a.py": "9", "tests/test_b.py": "2"}, {"m.py": "m1"}, ["tests/test_a.py"]),
        ({"tests/test_a.py": "1", "tests/test_b.py": "2"}, {"m.py": "m2"}, ["tests/test_a.py"]),
        ({"tests/test_c.py": "1"}, {}, ["tests/test_c.py"]),
    ],
)
def test_only_what_changed_is_recorded_again(
    tests: dict[str, str], modules: dict[str, str], expected: list[str]
) -> None:
    assert stale(KNOWN, tests, modules) == expected


def test_the_first_test_that_failed_is_named() -> None:
    output = "..F\nFAILED tests/a/test_b.py::test_c[1 - 2] - AssertionError: no\n1 failed"
    assert Run(1, output).failed == "tests/a/test_b.py::test_c[1 - 2]"
    assert Run(1, "ERROR tests/a/test_b.py::test_c\n").failed == "tests/a/test_b.py::test_c"
    assert Run(0, "3 passed").failed is None


def test_a_module_is_known_by_the_name_it_is_imported_with() -> None:
    assert dotted("matchmaker/tipoff_matchmaker/fleet/stop.py") == "tipoff_matchmaker.fleet.stop"
    assert dotted("examples/arena/tipoff_arena/__init__.py") == "tipoff_arena"
