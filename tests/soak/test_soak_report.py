"""The figures of a soak: slopes, what counts as measured, and which results are problems."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.bots import Loss
from tests.soak.driver import Recovery, Result
from tests.soak.invariants import Violation
from tests.soak.plot import svg
from tests.soak.processes import Usage, usage
from tests.soak.report import as_json, figures, markdown, measured, problems
from tests.soak.schedule import Fault, Kind
from tests.soak.trends import covers, trend


@given(
    slope=st.floats(-100, 100),
    begin=st.floats(-1000, 1000),
    times=st.lists(st.integers(0, 3600), min_size=3, unique=True),
)
def test_the_trend_of_a_line_is_its_slope(slope: float, begin: float, times: list[int]) -> None:
    fitted = trend([(at, begin + slope * at / 3600) for at in times])
    assert fitted.per_hour == pytest.approx(slope, abs=0.01)
    assert fitted.count == len(times)


def test_a_trend_needs_three_points_at_different_times() -> None:
    with pytest.raises(ValueError, match="three"):
        trend([(0, 0), (1, 1)])
    with pytest.raises(ValueError, match="different"):
        trend([(1, 0), (1, 1), (1, 2)])


def test_the_error_of_a_slope_grows_with_the_noise() -> None:
    quiet = trend([(at, float(at % 2)) for at in range(100)])
    noisy = trend([(at, 10.0 * (at % 2)) for at in range(100)])
    assert noisy.error == pytest.approx(10 * quiet.error)


def test_points_cover_a_time_that_they_nearly_span() -> None:
    assert covers([(0, 1), (50, 1), (95, 1)], 0, 100)
    assert not covers([(50, 1), (60, 1), (95, 1)], 0, 100)
    assert not covers([], 0, 100)


def result(**changes: object) -> Result:
    """Half an hour of a matchmaker that grows by 6 MB/h and of one that does not, with one fault."""
    fields: dict[str, object] = {
        "measured_from": 600.0,
        "usages": [
            Usage(float(at), name, pid, 60 + grown * at / 3600, 50, 10, 1)
            for at in range(0, 1800, 5)
            for name, pid, grown in (("matchmaker-1", 1, 6.0), ("httpd-1", 2, 0.0))
        ],
        "counts": {"JetStream consumers": [(float(at), 7.0) for at in range(0, 1800, 5)]},
        "sessions": [(float(at), 5) for at in range(1800)],
        "recoveries": [Recovery(Fault(10.0, Kind.KILL, "httpd-2", 0.0), 10.0, 10.0, 0.5, 0.7)],
    } | changes
    return Result("trusted", 1, 1800.0, **fields)  # type: ignore[arg-type] # checked by the tests


def test_a_process_that_grows_is_a_problem_and_one_that_does_not_is_none() -> None:
    (problem,) = problems(result())
    assert "matchmaker-1 grows by 6.0" in problem
    slopes = {f["figure"]: f["value"] for f in figures(result()) if "slope" in f["figure"]}
    assert slopes == {
        "trusted: matchmaker-1 memory slope": pytest.approx(6, abs=0.01),
        "trusted: httpd-1 memory slope": pytest.approx(0, abs=0.01),
    }


def test_a_process_that_was_restarted_while_it_was_measured_is_not_fitted() -> None:
    """Two processes of one name are two lines."""
    usages = [Usage(float(at), "httpd-1", 1 + at // 900, 60, 50, 10, 1) for at in range(0, 1800, 5)]
    assert measured(result(usages=usages)) == {}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"violations": [Violation("a seat without a session", "s", 1.0, 61.0)]}, "a seat without"),
        ({"losses": [Loss("d", 5.0, "timed out", True)]}, "a game on d ended"),
        ({"outcomes": {"play: no answer": 1}}, "no answer: 1"),
        ({"left": ["session s ready"]}, "left in the end: session s"),
        *(
            ({"counts": {name: [(float(at), at / 20) for at in range(0, 1800, 5)]}}, f"{name} grew")
            for name in ("JetStream consumers", "NATS subscriptions", "NATS connections", "httpd-1 tasks")
        ),
        (
            {"usages": [Usage(float(at), "httpd-1", 2, 60, 50, at // 60, 1) for at in range(0, 1800, 5)]},
            "open files of httpd-1 grew",
        ),
    ],
)
def test_what_is_wrong_is_a_problem(changes: dict[str, object], problem: str) -> None:
    assert any(problem in found for found in problems(result(**changes)))


def test_json_and_plot_hold_the_run() -> None:
    """Also of a run without anything."""
    assert json.loads(json.dumps(as_json(result())))["problems"]
    picture = ElementTree.fromstring(svg([result(), result()]))
    assert "kill -9 of httpd" in {element.text for element in picture.iter()}
    ElementTree.fromstring(svg([Result("trusted", 1, 60.0)]))


def test_the_tables_have_a_column_for_each_run() -> None:
    """Of what a run has not seen its cell is empty."""
    text = markdown({"trusted": figures(result()), "isolated": figures(result(recoveries=[]))})
    assert "| matchmaker-1 | 6.0 ± 0.0 (61.2 to 62.8) | 6.0 ± 0.0 (61.2 to 62.8) |" in text
    assert "| JetStream consumers | 7 to 7 | 7 to 7 |" in text
    assert "| kill -9 of httpd | 1 x: 0.5 / 0.5 s; 0.7 / 0.7 s |  |" in text


def test_the_usage_of_a_process_is_read_and_a_dead_one_has_none() -> None:
    import os

    used = usage("me", os.getpid(), 1.0)
    assert used is not None
    assert used.rss > 1
    assert used.files > 2
    assert used.threads >= 1
    assert usage("nobody", 2**22 + 1, 1.0) is None
