"""Three hundred players at once, on Edgegap's own rate limits."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.edgegap.edgegap_world import sleeper, with_sessions
from tipoff_edgegap_emulator import Rules
from tipoff_shared.messages import Feedback, SessionReady

PLAYERS, SEATS = 300, 4
GAME = sleeper(seats=SEATS, max_deployments=200, empty_ttl=60.0, request_timeout=40.0, start_timeout=30.0)


@pytest.mark.slow
@pytest.mark.row(37)
@pytest.mark.parametrize(
    ("game", "hooks"),
    [
        pytest.param(GAME, True, id="deployments, webhooks"),
        pytest.param(with_sessions(GAME), False, id="sessions, polling"),
    ],
)
async def test_three_hundred_at_once_all_play(edgegap: Callable[..., Any], game: Any, hooks: bool) -> None:
    """No 429 is received, no player is lost, and no deployment is started in excess."""
    httpd = {"hooks_per_second": 0}
    async with edgegap(
        game,
        hooks=hooks,
        rules=Rules(start_delay=1.0),
        httpd_settings=httpd,
        changes={"seat_hold": 15.0},
        poll_first=0.5,
        poll_slowest=3.0,
        timeout=30.0,  # Edgegap shares this process, and its processor, with everything else,
    ) as world:
        began = time.monotonic()

        async def play() -> Feedback:
            return await (await world.ask()).end(timeout=50)

        answers = await asyncio.gather(*(play() for _ in range(PLAYERS)))
        took = time.monotonic() - began
        lost = Counter(str(answer) for answer in answers if not isinstance(answer, SessionReady))
        assert not lost
        assert len(world.alive) == PLAYERS // SEATS
        assert world.emulator.count("deploy") + world.emulator.count("session.create") == (
            PLAYERS if game.orchestrator == "edgegap-sessions" else PLAYERS // SEATS
        )
        assert Counter(seat.deployment_id for seat in answers).most_common(1)[0][1] <= SEATS
        statuses = Counter(request.status for request in world.emulator.requests)
        assert 429 not in statuses
        assert world.emulator.problems == []
        calls = Counter(request.operation for request in world.emulator.requests)
        print(f"{game.orchestrator}, {hooks=}: {took:.1f} s; {dict(calls)}", file=sys.stderr)
