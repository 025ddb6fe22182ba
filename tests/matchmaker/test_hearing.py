"""When the silence of game servers means something, as time passes and NATS comes and goes."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import cast

import pytest

from tipoff_matchmaker import hearing as hearing_module
from tipoff_matchmaker.hearing import Hearing, Position, trouble
from tipoff_shared.nats.connection import Bus

SETTLE = 10.0


class World:
    """A clock, and a connection to NATS."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.connected_since: float | None = self.now

    def hearing(self, *, by_stream: bool) -> Hearing:
        return Hearing(cast(Bus, self), settle=SETTLE, by_stream=by_stream)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(hearing_module, "time", SimpleNamespace(monotonic=lambda: world.now))
    return world


# The stream of events.


@pytest.mark.parametrize(
    ("position", "why"),
    [
        (Position(100, 5, 10, 500, 1000), ""),
        (Position(100, 6, 10, 500, 1000), "the stream of their events is full: 6 of 10 events"),
        (Position(100, 5, 10, 501, 1000), "the stream of their events is full: 501 of 1000 bytes"),
        (Position(100, 10**6, 0, 10**9, 0), ""),
        (Position(100, 10**6, -1, 10**9, -1), ""),
        (Position(100, 0, 0, 0, 0), ""),
        (Position(100, 5, 10, 5, 10, refused="no room"), "the stream of their events takes none: no room"),
        (Position(100, 5, 10, 5, 10, probed_at=97), ""),
        (Position(100, 5, 10, 5, 10, probed_at=96.9), "events are read more than 3 s late"),
    ],
)
def test_a_stream_that_is_half_full_or_read_late_hides_servers(position: Position, why: str) -> None:
    """A limit of 0 or -1 is none."""
    assert trouble(position, patience=3) == why


# Settled.


def test_silence_means_something_when_nats_has_been_there_for_a_while(world: World) -> None:
    hearing = world.hearing(by_stream=False)
    assert not hearing.settled
    world.now += SETTLE - 0.1
    assert not hearing.settled
    world.now += 0.1
    assert hearing.settled
    world.connected_since = None
    assert not hearing.settled
    world.connected_since = world.now
    assert not hearing.settled
    world.now += SETTLE
    assert hearing.settled


def test_servers_that_speak_through_a_stream_are_heard_when_it_is_read(world: World) -> None:
    hearing = world.hearing(by_stream=True)
    world.now += SETTLE
    assert not hearing.settled, "nothing was ever read"
    hearing.heard(world.now)
    world.now += SETTLE - 0.1
    assert not hearing.settled
    hearing.heard(world.now)
    world.now += 0.1
    assert hearing.settled, "since the first time"


def test_after_a_disturbance_silence_means_nothing_for_a_while(world: World) -> None:
    hearing = world.hearing(by_stream=True)
    hearing.heard(world.now)
    world.now += SETTLE
    assert hearing.settled
    hearing.disturbed("full")
    assert not hearing.settled
    world.now += SETTLE
    assert not hearing.settled, "it is not heard again yet"
    hearing.heard(world.now)
    world.now += SETTLE
    assert hearing.settled


@pytest.mark.parametrize("by_stream", [True, False])
def test_what_nats_has_lost_is_said_again_within_a_while(world: World, by_stream: bool) -> None:
    hearing = world.hearing(by_stream=by_stream)
    hearing.heard(world.now)
    world.now += SETTLE
    assert hearing.settled
    hearing.lost()
    assert not hearing.settled
    world.now += SETTLE - 0.1
    assert not hearing.settled
    world.now += 0.1
    assert hearing.settled


# Deaf.


def test_nobody_is_deaf_who_needs_no_stream(world: World) -> None:
    hearing = world.hearing(by_stream=False)
    assert not hearing.deaf
    hearing.disturbed("full")
    assert not hearing.deaf


def test_a_stream_is_not_heard_before_its_first_event_and_for_a_while_after_trouble(world: World) -> None:
    hearing = world.hearing(by_stream=True)
    assert hearing.deaf
    hearing.heard(world.now)
    assert not hearing.deaf
    hearing.disturbed("full")
    hearing.heard(world.now)
    world.now += SETTLE - 0.1
    assert hearing.deaf
    world.now += 0.1
    assert not hearing.deaf


def test_listeners_hear_for_how_long_nobody_may_be_judged(world: World) -> None:
    hearing = world.hearing(by_stream=True)
    heard: list[float] = []
    hearing.subscribe(heard.append)
    hearing.subscribe(heard.append)
    hearing.disturbed("full")
    hearing.disturbed("full")
    assert heard == [SETTLE] * 4


def test_trouble_and_its_end_are_logged_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    hearing = world.hearing(by_stream=True)
    hearing.heard(world.now)
    assert caplog.records == []
    for _ in range(3):
        hearing.disturbed("full")
    for _ in range(3):
        hearing.heard(world.now)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "10 s have passed without this: full" in caplog.messages[0]
    assert caplog.messages[1] == "game servers are heard again"


# News.


def test_a_lease_written_since_this_process_listens_is_news(world: World) -> None:
    hearing = world.hearing(by_stream=True)
    hearing.heard(world.now)
    assert not hearing.unbroken, "it does not listen yet"
    assert not hearing.is_news(10)
    hearing.began(5)
    assert hearing.unbroken
    assert [hearing.is_news(revision) for revision in (4, 5, 6)] == [False, False, True]


@pytest.mark.parametrize("by_stream", [True, False])
@pytest.mark.parametrize("what", ["reconnected", "away", "lost", "disturbed"])
def test_after_a_break_nothing_is_known_to_be_news(world: World, what: str, by_stream: bool) -> None:
    hearing = world.hearing(by_stream=by_stream)
    hearing.heard(world.now)
    hearing.began(5)
    assert hearing.is_news(6)
    world.now += 1
    if what == "reconnected":
        world.connected_since = world.now
    elif what == "away":
        world.connected_since = None
    elif what == "lost":
        hearing.lost()
    else:
        hearing.disturbed("full")
    broken = by_stream or what != "disturbed"
    assert hearing.unbroken is not broken
    assert hearing.is_news(6) is not broken


def test_who_begins_to_listen_without_nats_has_no_news(world: World) -> None:
    world.connected_since = None
    hearing = world.hearing(by_stream=False)
    hearing.began(5)
    assert not hearing.unbroken
    assert not hearing.is_news(6)
    world.connected_since = world.now
    assert not hearing.unbroken
