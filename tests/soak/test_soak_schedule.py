"""The schedule of a soak: the same for the same seed, every kind of fault, and measured processes that live on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.schedule import LASTING_SERVER, NATS, QUIET, SERVER, Kind, is_measured, schedule, warm_up

REPLICAS = ["matchmaker-1", "matchmaker-2", "httpd-1", "httpd-2"]
HALF_AN_HOUR = 1800.0


def test_a_seed_repeats_its_faults_and_another_seed_has_others() -> None:
    assert schedule(7, HALF_AN_HOUR, REPLICAS) == schedule(7, HALF_AN_HOUR, REPLICAS)
    assert schedule(7, HALF_AN_HOUR, REPLICAS) != schedule(8, HALF_AN_HOUR, REPLICAS)


@given(seed=st.integers(), seconds=st.floats(10, 7200))
def test_faults_come_one_after_another_and_the_end_is_quiet(seed: int, seconds: float) -> None:
    ended = 0.0
    for fault in schedule(seed, seconds, REPLICAS):
        assert ended < fault.at < seconds - QUIET + 0.1
        assert 0 <= fault.seconds <= 12
        assert 0 <= fault.pick < 1.001
        ended = fault.at + fault.seconds


@given(seed=st.integers(), seconds=st.floats(10, 7200))
def test_after_the_warm_up_no_measured_process_is_ended(seed: int, seconds: float) -> None:
    for fault in schedule(seed, seconds, REPLICAS):
        if fault.kind in (Kind.KILL, Kind.TERMINATE) and fault.at > warm_up(seconds):
            assert not is_measured(fault.target)
            assert fault.target != LASTING_SERVER


def test_an_hour_and_a_half_has_every_fault_of_every_part() -> None:
    seen = {(fault.kind, fault.target) for fault in schedule(1, 3 * HALF_AN_HOUR, REPLICAS)}
    for name in (*REPLICAS, "launcher"):
        assert {(kind, name) for kind in (Kind.STOP, Kind.FREEZE, Kind.CUT, Kind.KILL)} <= seen
    assert {(Kind.TERMINATE, name) for name in REPLICAS} <= seen
    assert {(Kind.KILL, NATS), (Kind.STOP, NATS), (Kind.KILL, SERVER), (Kind.STOP, SERVER)} <= seen
    assert {(Kind.KILL, LASTING_SERVER), (Kind.STOP, LASTING_SERVER)} <= seen


@pytest.mark.parametrize(
    ("part", "measured"), [("matchmaker-1", True), ("httpd-2", False), (NATS, True), (SERVER, False)]
)
def test_the_first_replica_of_each_kind_is_measured(part: str, measured: bool) -> None:
    assert is_measured(part) is measured
