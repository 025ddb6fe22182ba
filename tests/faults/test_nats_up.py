"""NATS is killed under the whole system: every part comes back by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from tests.arena_servers import arena_toml
from tests.e2e.steps import pids_of
from tests.polling import eventually
from tipoff.testing import running_up
from tipoff_client_sdk import connect
from tipoff_shared.errors import TipoffError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

GAMES = arena_toml(seats=2, min_ready=1, max_deployments=4, empty_ttl=60, tick_rate=10)


@pytest.mark.row(13, 16)
async def test_nats_is_killed_under_the_whole_system(tmp_path: Path) -> None:
    """Who plays never notices; whoever comes is served within 15 s, also on a server that must be started first; the
    game servers are the same processes as before, and in the end everything is given back."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES)
    async with running_up(tmp_path / "state", games=games) as up:
        async with connect(up.url, game="arena", version="1") as player:
            servers = set(pids_of(up.state_dir, "tipoff_arena.server"))
            (nats,) = pids_of(up.state_dir, "nats-server")
            os.kill(nats, signal.SIGKILL)
            killed = time.monotonic()
            seats = [asyncio.create_task(_play(up.url, killed + 30)) for _ in range(4)]
            until = killed + 5
            heard = 0
            while time.monotonic() < until:  # snapshots, ten a second
                async with asyncio.timeout(1):
                    await anext(aiter(player))
                heard += 1
            took = [at - killed for at in await asyncio.gather(*seats)]
            print(f"{heard} messages in 5 s; seats after {', '.join(f'{one:.1f}' for one in took)} s")
            assert max(took) < 15
            assert player.connected
            assert servers <= set(pids_of(up.state_dir, "tipoff_arena.server"))

        async def given_back() -> bool:
            status = await up.status()
            return not status["sessions"] and not status["connections"]

        await eventually(given_back, "everything given back", 40)


async def _play(url: str, until: float) -> float:
    """When this player was in a game; asks again when told to, until then."""
    while True:
        try:
            async with connect(url, game="arena", version="1", timeout=20):
                at = time.monotonic()
                await asyncio.sleep(1)  # it plays
                return at
        except TipoffError as exc:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(exc.retry_after or 0.2)  # as a player does
