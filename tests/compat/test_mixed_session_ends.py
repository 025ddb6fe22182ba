"""Why sessions ended, between releases: who does not say or read it does without."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.compat.mixed_releases import NEW, OLD, MixedSystem

KICKED = ("kicked", "the game kicked the player: as you wish")
UNSAID = {OLD: ("left", "the player left"), NEW: KICKED}


@pytest.mark.slow
@pytest.mark.row(101)
@pytest.mark.parametrize("profile", ["system", "isolated_system"])
@pytest.mark.parametrize(("matchmaker", "gameserver"), [(NEW, OLD), (OLD, NEW), (NEW, NEW)])
async def test_a_kicked_player_s_session_ends_with_what_both_releases_know(
    system: MixedSystem,
    isolated_system: MixedSystem,
    profile: str,
    matchmaker: str,
    gameserver: str,
) -> None:
    """And its seat is free, whoever reads."""
    mixed = system if profile == "system" else isolated_system
    await mixed.start(matchmaker=matchmaker, gameserver=gameserver)
    async with mixed.play() as player:
        await player.send(b"kick")
        async with asyncio.timeout(30):
            await player.ended()

    async def over() -> bool:
        status = await mixed.status()
        return not status["sessions"] and not any(server["seats"] for server in status["deployments"])

    await mixed.eventually(over, "the session is over")
    ended: list[dict[str, Any]] = (await mixed.status())["ended"]
    said = [(session["cause"], session["reason"]) for session in ended]
    assert said == ([UNSAID[gameserver]] if matchmaker == NEW else [])
