"""A match of exactly two by `tipoff up`, with somebody who asks for a seat and never connects."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.polling import eventually
from tipoff.testing import running_up
from tipoff_client_sdk import connect
from tipoff_client_sdk.matchmaking import Progress, matchmaker_url, request_seat
from tipoff_shared.messages import PlayRequest
from tipoff_shared.names import new_request_id

pytestmark = [pytest.mark.row(91), pytest.mark.slow, pytest.mark.timeout(180)]

GAMES = """
[[game]]
name = "duel"
version = "1"
seats = 2
fill_rooms = true
min_ready = 2
max_deployments = 4

[game.process]
command = ["python", "duel.py"]
"""
DUEL = """
from tipoff_gameserver import Game, GameServer


class Duel(Game):
    server = None

    def on_start(self, server):
        self.server = server

    def on_join(self, player):
        if len(self.server.players) == 2:
            self.server.lock()

    def on_message(self, player, data):
        if data == b"who is on the way?":
            player.send(b"%d" % len(self.server.expected))
        else:
            self.server.broadcast(data, exclude=player)


GameServer(Duel()).main()
"""


def _ignore(progress: Progress) -> None:
    pass


async def test_two_players_play_each_other_though_somebody_between_them_never_connects(
    tmp_path: Path,
) -> None:
    """With the first play, right after the start; then the room is closed, and the next pair gets another one."""
    (tmp_path / "games.toml").write_text(GAMES)
    (tmp_path / "duel.py").write_text(DUEL)
    async with (
        running_up(tmp_path / "state", games=tmp_path / "games.toml") as up,
        asyncio.timeout(120),
        connect(up.url, game="duel", version="1", transports=["websocket"]) as ann,
    ):
        absent = PlayRequest("duel", "1", request_id=new_request_id())
        seat = await request_seat(matchmaker_url(up.url), absent, progress=_ignore, timeout=60, ssl=None)
        assert seat.deployment_id == ann.deployment_id
        began = time.monotonic()

        async def one_is_expected() -> bool:
            await ann.send(b"who is on the way?")
            return await anext(aiter(ann)) == b"1"

        await eventually(one_is_expected, "Ann's server knows who is on the way", 10)
        async with connect(up.url, game="duel", version="1", transports=["websocket"]) as bob:
            print(f"Ann and Bob play each other after {time.monotonic() - began:.1f} s")
            assert bob.deployment_id == ann.deployment_id
            await bob.send(b"hello, Ann")
            assert await anext(aiter(ann)) == b"hello, Ann"

            async def closed() -> bool:
                servers = (await up.status())["deployments"]
                return [s["id"] for s in servers if s.get("locked")] == [ann.deployment_id]

            await eventually(closed, "the room is closed", 30)
            async with connect(up.url, game="duel", version="1", transports=["websocket"]) as carol:
                assert carol.deployment_id != ann.deployment_id
