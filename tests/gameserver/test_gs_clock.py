"""Ticks are due on a grid, without drift and without a spiral of death."""

from __future__ import annotations

from tipoff_gameserver.clock import MAX_BEHIND, TickSchedule


def test_late_ticks_do_not_move_later_ones() -> None:
    """However late each tick begins, the thousandth is due a thousand periods after the start."""
    schedule = TickSchedule(60, now=0.0)
    for _ in range(1000):
        assert schedule.skip_missed(schedule.due + 0.9 / 60) == 0
        schedule.begin()
    assert abs(schedule.due - 1001 / 60) < 1e-6


def test_a_server_that_falls_behind_a_little_catches_up() -> None:
    schedule = TickSchedule(10, now=0.0)
    assert schedule.skip_missed(0.1 + 0.1 * (MAX_BEHIND - 0.5)) == 0
    assert schedule.skipped == 0


def test_a_server_that_falls_behind_too_far_skips() -> None:
    """After a pause of a hundred ticks there is one tick to run at once, not a hundred."""
    schedule = TickSchedule(10, now=0.0)
    assert schedule.skip_missed(10.05) == 99
    assert schedule.due <= 10.05
    schedule.begin()
    assert schedule.due > 10.05
    assert schedule.skipped == 99


def test_a_server_that_is_always_too_slow_runs_every_tick_it_can() -> None:
    """Ticks that take three periods: the lag stays bounded, and no time is spent on chasing it."""
    schedule = TickSchedule(10, now=0.0)
    now = 0.0
    for _ in range(200):
        schedule.skip_missed(now)
        now = max(now, schedule.due)
        schedule.begin()
        now += 0.3
        assert now - schedule.due < (MAX_BEHIND + 3) * 0.1
    assert schedule.ticks == 200
    assert schedule.ticks + schedule.skipped <= now * 10 + 1


def test_the_mean_tick_time_follows_what_is_measured() -> None:
    schedule = TickSchedule(10, now=0.0)
    schedule.begin()
    schedule.measured(0.02)
    assert schedule.tick_time == 0.02
    for _ in range(200):
        schedule.begin()
        schedule.measured(0.05)
    assert abs(schedule.tick_time - 0.05) < 1e-4
