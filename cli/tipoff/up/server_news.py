"""What happens to the game servers of a running `tipoff up`, as far as its terminal should say it.

A server that crashes is the most common mistake of a first day: its last words belong where the developer looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tipoff_orchestrator_client.base import RunState
from tipoff_orchestrator_client.launcher import LauncherOrchestrator
from tipoff_shared.errors import TipoffError
from tipoff_shared.nats.connection import connect
from tipoff_shared.settings import NatsSettings

REPEAT_AFTER = 10.0
"""Seconds before the same news of the same game is told again."""


async def tell_of_crashes(settings: NatsSettings, say: Callable[[str], None]) -> None:
    """Say each end of a server that nobody asked for, until cancelled. Not being able to is said, and no more."""
    told: dict[tuple[str, str, str], float] = {}
    try:
        async with connect(settings, name="tipoff up") as bus:
            launcher = LauncherOrchestrator(bus)
            async for server in launcher.events():
                asked_for = server.reason.startswith("stopped") or server.reason == "exited with code 0"
                if server.state is not RunState.STOPPED or asked_for:
                    continue
                news = (server.game, server.version, server.reason)
                if time.monotonic() - told.get(news, -REPEAT_AFTER) >= REPEAT_AFTER:
                    told[news] = time.monotonic()
                    say(
                        f"a server of {server.game} {server.version} ended: {server.reason} ({server.deployment_id})"
                    )
    except TipoffError as exc:
        say(f"crashes of game servers will not be told here: {exc}")
