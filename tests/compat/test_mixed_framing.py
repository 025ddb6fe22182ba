"""Frames are agreed on: an old client with a new game server, and the other way round, do without."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.gameserver.players import Recorder
from tipoff_client_sdk import Transport, connect
from tipoff_gameserver import GameServer, LeaveReason, Player
from tipoff_shared.errors import MessageTooLarge

pytestmark = pytest.mark.row(92)

WAYS: list[Transport] = ["udp", "websocket"]
TIMEOUT = 30.0

OLD_CLIENT = """
import asyncio, sys
from tipoff_client_sdk import connect

async def main():
    async with connect(sys.argv[1], game="g", version="1", transports=[sys.argv[2]]) as player:
        for _ in range(3):
            await player.send(b"hello" * 200)
            print(len(await player.receive()), flush=True)
        async for message in player:
            print("and", message.decode(), flush=True)
        print("over:", player.end_reason, flush=True)

asyncio.run(main())
"""

OLD_SERVER = """
import tipoff_gameserver

class Echo:
    def on_start(self, server):
        print(server.url, flush=True)
    def on_message(self, player, data):
        if data == b"kick me":
            player.kick("as you wish")
        else:
            player.send(data)

tipoff_gameserver.GameServer(Echo(), stand_alone=True, listen="127.0.0.1:0").main()
"""


@asynccontextmanager
async def old(previous: Path, code: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program of the previous release."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        code,
        *arguments,
        env=os.environ | {"PYTHONPATH": str(previous), "TIPOFF_LOG_LEVEL": "WARNING"},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


@pytest.mark.parametrize("way", WAYS)
async def test_an_old_client_plays_on_a_new_server(previous_release: Path, way: Transport) -> None:
    """It gets short messages as ever, reliable ones among them; a long one is refused where it is sent."""
    game = Recorder()
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
        old(previous_release, OLD_CLIENT, server.url, way) as client,
    ):
        assert [await line(client) for _ in range(3)] == ["1000"] * 3
        player = next(event[1] for event in game.happened if event[0] == "join")
        assert isinstance(player, Player)
        assert player.max_message == 1200
        assert player.reliable == (way == "websocket")
        with pytest.raises(MessageTooLarge, match="1 to 1200 bytes"):
            player.send(bytes(1201), reliable=True)
        player.send(b"reliable", reliable=True)
        assert await line(client) == "and reliable"
        player.kick("enough")
        assert (await line(client)).startswith("over:")
        assert [event[2] for event in game.happened if event[0] == "leave"] == [LeaveReason.KICKED]


@pytest.mark.parametrize("way", WAYS)
async def test_a_new_client_plays_on_an_old_server(previous_release: Path, way: Transport) -> None:
    async with old(previous_release, OLD_SERVER) as server:
        url = await line(server)
        async with connect(url, game="g", version="1", transports=[way]) as player:
            assert player.max_message == 1200
            assert player.reliable == (way == "websocket")
            await player.send(b"reliable", reliable=True)
            assert await player.receive() == b"reliable"
            with pytest.raises(MessageTooLarge, match="1 to 1200 bytes"):
                await player.send(bytes(1201))
            await player.send(b"kick me", reliable=True)
            ending = await player.ended()
            assert ending.error is None
            assert ending.code == (None if way == "udp" else 4000)
