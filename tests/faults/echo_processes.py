"""Game servers as real processes: the game, which sends everything back, and the process that one player is on."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.matchmaker.world import FAST, KEY, World
from tipoff_matchmaker.settings import Settings
from tipoff_shared.games import Game, Games, ProcessSpec
from tipoff_shared.messages import SessionReady

_SERVER = """
import tipoff_gameserver

class Echo:
    def on_message(self, player, data):
        player.send(data)

tipoff_gameserver.GameServer(Echo(), tick_rate=20).main()
"""


def echo_games(directory: Path, *, start_timeout: float = 30.0) -> Games:
    """One game, its server in `directory`; a lease there lives for two seconds."""
    (directory / "server.py").write_text(_SERVER)
    echo = Game(
        "arena",
        "1",
        seats=4,
        max_deployments=2,
        empty_ttl=60,
        start_timeout=start_timeout,
        process=ProcessSpec([sys.executable, "server.py"], env={"TIPOFF_LEASE_TTL": "2"}),
    )
    return Games({echo.key: echo}, {echo.key: KEY}, directory)


def quick_settings(**changes: object) -> Settings:
    """A matchmaker's, quick, for such leases."""
    return Settings(**(FAST | {"lease_ttl": 2.0, "lease_grace": 1.0} | changes))  # type: ignore[arg-type] # checked by pydantic


async def pid_of(world: World, ready: SessionReady) -> int:
    """Process id of the server that a player was sent to, from its lease."""
    lease = await world.buckets.gameservers.get(ready.deployment_id)
    assert lease is not None
    return lease.value.pid
