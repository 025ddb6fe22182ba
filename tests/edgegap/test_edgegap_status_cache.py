"""The last status of each deployment: how long it is current, what is news, what is polled, what is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from tipoff_orchestrator_client.base import Deployment, RunState
from tipoff_orchestrator_client.edgegap.poller.poll_loop import PollLoop
from tipoff_orchestrator_client.edgegap.poller.status_cache import StatusCache
from tipoff_orchestrator_client.events import EventQueue

STARTING, RUNNING, STOPPED = RunState.STARTING, RunState.RUNNING, RunState.STOPPED


class Polled:
    """Whom a poll loop would poll."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def add(self, id: str) -> None:
        self.ids.append(id)

    def remove(self, id: str) -> None:
        if id in self.ids:
            self.ids.remove(id)


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.polled = Polled()
        self.cache = StatusCache(cast(PollLoop, self.polled), monotonic=lambda: self.now)

    def hear(self, state: RunState, id: str = "a") -> Deployment:
        return self.cache.hear(Deployment(id, "arena", "1", state, native_id=f"native {id}"))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def events(world: World) -> Iterator[EventQueue]:
    with world.cache.listeners.listen() as queue:
        yield queue


@pytest.mark.parametrize(
    ("state", "age", "fresh"),
    [(STARTING, 0.5, True), (RUNNING, 0.5, True), (RUNNING, 0.6, False), (STOPPED, 0.0, False)],
)
def test_a_status_is_current_for_half_a_second_unless_it_has_stopped(
    world: World, state: RunState, age: float, fresh: bool
) -> None:
    heard = world.hear(state)
    world.now += age
    assert world.cache.fresh("a") == (heard if fresh else None)
    assert world.cache.fresh("b") is None


@pytest.mark.parametrize(
    ("state", "age", "ran"),
    [(RUNNING, 0.6, True), (RUNNING, 0.5, False), (STARTING, 0.6, False), (STOPPED, 0.6, False)],
)
def test_one_was_running_when_that_is_the_last_that_was_heard(
    world: World, state: RunState, age: float, ran: bool
) -> None:
    """And is not current."""
    world.hear(state)
    world.now += age
    assert world.cache.was_running("a") is ran
    assert not world.cache.was_running("b")


def test_what_is_heard_for_the_first_time_or_has_changed_is_news(world: World, events: EventQueue) -> None:
    """A start is none: who ordered it knows."""
    told: list[RunState] = []
    events.put = lambda event: told.append(event.state)  # type: ignore[method-assign]
    for state in (STARTING, STARTING, RUNNING, RUNNING, STOPPED, STOPPED, RUNNING):
        world.hear(state)
    assert told == [RUNNING, STOPPED, RUNNING]


def test_one_that_starts_is_polled_until_it_runs_or_has_stopped(world: World) -> None:
    for end in (RUNNING, STOPPED):
        world.cache.follow(world.hear(STARTING))
        world.cache.follow(world.hear(STARTING, "b"))
        assert world.polled.ids == ["a", "b"]
        world.cache.follow(world.hear(end))
        assert world.polled.ids == ["b"]
        world.hear(end, "b")
        assert world.polled.ids == []


def test_one_is_known_by_its_own_name_and_by_edgegaps(world: World) -> None:
    assert "a" not in world.cache
    for id in ("a", "b"):
        world.hear(RUNNING, id)
    assert "a" in world.cache
    assert world.cache.named("native b") == "b"
    assert world.cache.named("native c") is None


def test_what_has_no_order_any_longer_is_forgotten_when_it_is_old(world: World) -> None:
    for id in ("ordered", "unconfirmed", "old"):
        world.hear(RUNNING, id)
    for id in ("ordered", "old"):
        world.cache.confirm(id)
    world.now += 60.0
    world.hear(RUNNING, "young")
    world.now += 0.5
    world.cache.keep({"ordered", "unconfirmed"}, younger_than=60.0)
    every = ("ordered", "unconfirmed", "old", "young")
    assert [id for id in every if id in world.cache] == ["ordered", "unconfirmed", "young"]
    assert [id for id in every if world.cache.is_confirmed(id)] == ["ordered"]
