"""A game that keeps the event loop from running is named, with the line where it is."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import pytest

from tests.polling import eventually
from tipoff_gameserver.blocked import BlockedWatch
from tipoff_gameserver.players.dispatch import Dispatcher
from tipoff_shared.primitives.tasks import Tasks


def busy_until(done: Callable[[], bool]) -> None:
    """Keeps the event loop busy, as a loop in a game would."""
    until = time.monotonic() + 20
    while not done() and time.monotonic() < until:
        pass


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tipoff_gameserver.blocked"]


async def test_the_line_of_the_game_is_told_once_and_that_it_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own line, not that of what it calls."""
    caplog.set_level(logging.WARNING)
    watch = BlockedWatch(told_after=0.2)

    def tick() -> None:
        busy_until(lambda: bool(told(caplog)))

    async with Tasks("test") as tasks:
        dispatcher = Dispatcher(tasks, lambda label, args, exc: None)
        watch.start()
        try:
            dispatcher.post("tick", tick)
            assert len(told(caplog)) == 1
            assert "the game has not returned for" in told(caplog)[0]
            assert "test_gs_blocked.py, line" in told(caplog)[0]
            await eventually(lambda: len(told(caplog)) == 2, "told that it goes on", 20)
            assert told(caplog)[1].startswith("the game goes on, after ")
        finally:
            watch.stop()


async def test_what_is_not_the_games_is_not_blamed_on_it(caplog: pytest.LogCaptureFixture) -> None:
    """A slow machine, or work of the server itself."""
    caplog.set_level(logging.WARNING)
    watch = BlockedWatch(told_after=0.2)
    watch.start()
    until = time.monotonic() + 1.2
    busy_until(lambda: time.monotonic() > until)
    watch.stop()
    assert told(caplog) == []
