"""A player whose connection is lost comes back to the same seat by `tipoff up`, and the others never see it leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from tests.cut import Cuts
from tests.polling import eventually
from tipoff.testing import RunningUp, running_up
from tipoff_client_sdk import ServerLost, connect
from tipoff_client_sdk.connect import Transport
from tipoff_client_sdk.connection import Player
from tipoff_client_sdk.matchmaking import Progress, Stage

pytestmark = [
    pytest.mark.row(99),
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]

GAMES = """
[[game]]
name = "patient"
version = "1"
seats = 4
min_ready = 1
token_timeout = 4
resume_ttl = 120

[game.process]
command = ["python", "server.py"]

[[game]]
name = "hasty"
version = "1"
seats = 4
min_ready = 1
token_timeout = 4
resume_ttl = 2

[game.process]
command = ["python", "server.py"]

[[game]]
name = "strict"
version = "1"
seats = 4
min_ready = 1
token_timeout = 4
resume_ttl = 0

[game.process]
command = ["python", "server.py"]
"""
SERVER = """
import os

from tipoff_gameserver import Game, GameServer


class Told(Game):
    def on_start(self, server):
        self.server = server

    def tell(self, what, player, *more):
        text = " ".join([what, str(player.id), *more])
        self.server.broadcast(text.encode(), reliable=True)

    def on_join(self, player):
        player.data = 0
        self.tell("join", player)

    def on_message(self, player, data):
        player.data += 1
        player.send(b"%d %d" % (player.id, player.data), reliable=True)

    def on_drop(self, player):
        self.tell("drop", player)

    def on_resume(self, player):
        player.send(b"you have sent %d" % player.data, reliable=True)
        self.tell("resume", player)

    def on_leave(self, player, reason):
        self.tell("leave", player, reason)


GameServer(Told()).main()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def up(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningUp]:
    place = tmp_path_factory.mktemp("reconnect")
    (place / "games.toml").write_text(GAMES)
    (place / "server.py").write_text(SERVER)
    async with running_up(place / "state", games=place / "games.toml") as running:
        yield running


async def hears(player: Player, text: str) -> list[str]:
    """What comes until `text`, that included."""
    heard: list[str] = []
    async with asyncio.timeout(60):
        async for message in player:
            heard.append(message.decode())
            if heard[-1] == text:
                return heard
    raise AssertionError(f"the end came before {text!r}: {heard}")


def cut(cuts: Cuts, player: Player) -> None:
    port = int(player.server.rstrip("/").rpartition(":")[2])
    count = cuts.udp(port) if player.transport == "udp" else cuts.tcp(port)
    assert count == 1, f"{count} sockets were cut"


@pytest.mark.parametrize("ways", [("udp",), ("websocket",)], ids="-".join)
async def test_who_is_cut_off_comes_back_to_the_same_seat(up: RunningUp, ways: Sequence[Transport]) -> None:
    """Ann watches Bob: dropped, back, and never gone; the server's player is the same, with its data."""
    other: list[Transport] = ["websocket" if ways == ("udp",) else "udp"]
    stages: list[Stage] = []

    def note(progress: Progress) -> None:
        stages.append(progress.stage)

    with Cuts() as cuts:
        async with (
            connect(up.url, game="patient", version="1", transports=other) as ann,
            connect(up.url, game="patient", version="1", transports=ways, progress=note) as bob,
        ):
            assert bob.deployment_id == ann.deployment_id
            assert bob.client_index is not None
            await bob.send(b"one", reliable=True)
            number = (await hears_counted(bob, 1)).split()[0]
            cut(cuts, bob)
            assert "you have sent 1" in await hears(bob, f"resume {number}")
            await bob.send(b"two", reliable=True)
            assert await hears_counted(bob, 2) == f"{number} 2"
            seen = await hears(ann, f"resume {number}")
            assert f"drop {number}" in seen
            assert not [line for line in seen if line.startswith("leave")]
            assert stages[-2:] == [Stage.DROPPED, Stage.RESUMED]
            assert bob.connected
            assert not bob.reconnecting
        # Both have left, and their seats are free at once, whatever resume_ttl says.
        await eventually(lambda: seats_taken(up, "patient", 0), "both seats are free", 30)


async def hears_counted(player: Player, count: int) -> str:
    async with asyncio.timeout(60):
        async for message in player:
            text = message.decode()
            if text.split()[-1] == str(count) and text.split()[0].isdigit():
                return text
    raise AssertionError("the end came first")


async def seats_taken(up: RunningUp, game: str, count: int) -> bool:
    servers = (await up.status())["deployments"]
    return sum(len(server["seats"]) for server in servers if server["game"] == game) == count


async def test_a_player_who_stays_away_loses_the_seat_when_the_time_is_over(up: RunningUp) -> None:
    """Bob does not come back: `on_leave` follows `on_drop` after `resume_ttl`, and the seat is free."""
    with Cuts() as cuts:
        async with (
            connect(up.url, game="hasty", version="1", transports=["websocket"]) as ann,
            connect(up.url, game="hasty", version="1", transports=["udp"], resume=False) as bob,
        ):
            await bob.send(b"one", reliable=True)
            number = (await hears_counted(bob, 1)).split()[0]
            cut(cuts, bob)
            with pytest.raises(ServerLost):
                await hears(bob, "never")
            seen = await hears(ann, f"leave {number} timed out")
            assert seen[-2:] == [f"drop {number}", f"leave {number} timed out"]
            await eventually(lambda: seats_taken(up, "hasty", 1), "Bob's seat is free", 30)


async def test_without_resume_ttl_a_lost_player_has_left(up: RunningUp) -> None:
    with Cuts() as cuts:
        async with (
            connect(up.url, game="strict", version="1", transports=["websocket"]) as ann,
            connect(up.url, game="strict", version="1", transports=["udp"]) as bob,
        ):
            await bob.send(b"one", reliable=True)
            number = (await hears_counted(bob, 1)).split()[0]
            cut(cuts, bob)
            with pytest.raises(ServerLost):
                await hears(bob, "never")
            seen = await hears(ann, f"leave {number} timed out")
            assert not [line for line in seen if line.startswith("drop")]
