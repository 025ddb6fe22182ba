"""The matchmaker's process and how its parts are put together."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from tests.matchmaker.world import World
from tipoff_matchmaker.metrics import Metrics
from tipoff_matchmaker.sessions.state_machine import Effect
from tipoff_matchmaker.sessions.store import SessionStore
from tipoff_matchmaker.settings import Settings
from tipoff_shared.errors import Internal


def test_a_wrong_setting_is_one_clear_line() -> None:
    """It names the variable and what is allowed; the exit code is 2."""
    wrong = {"TIPOFF_MATCHMAKER_MAX_REQUESTS": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "tipoff_matchmaker"],
        env=os.environ | wrong,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "tipoff matchmaker: TIPOFF_MATCHMAKER_MAX_REQUESTS: must be greater than or equal to 1 (it is '0')\n"
    )


async def test_metrics_count_the_tasks_of_the_event_loop() -> None:
    """A leak of tasks shows: one more task is one more in the gauge."""
    metrics = Metrics()
    metrics.count_tasks(asyncio.get_running_loop())

    def tasks() -> float | None:
        return metrics.registry.get_sample_value("tipoff_matchmaker_tasks")

    before = tasks()
    assert before is not None
    waiting = asyncio.create_task(asyncio.Event().wait())
    assert tasks() == before + 1
    waiting.cancel()


async def test_each_session_effect_has_exactly_one_handler(world: World) -> None:
    """An effect without one would keep a seat for ever, unseen."""
    sessions = SessionStore(world.buckets.sessions, Settings(), lambda: 0.0)

    def handler(session_id: str, record: object) -> None:
        raise AssertionError

    with pytest.raises(Internal, match="release"):
        sessions.handle({Effect.KICK: handler, Effect.CLAIMED: handler})
    handlers = dict.fromkeys(Effect, handler)
    sessions.handle(handlers)
    with pytest.raises(Internal, match="already"):
        sessions.handle(handlers)
