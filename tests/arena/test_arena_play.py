"""The arena through real sockets: a real stand-alone server, real clients, both transports."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from tests.arena_servers import arena_process
from tests.polling import eventually
from tipoff_arena import wire
from tipoff_arena.client import ArenaView, Joined, Lost, play
from tipoff_arena.game import FIRST_BOT, ArenaGame
from tipoff_arena.rules import SPEED, Input, Point
from tipoff_arena.server import arena_from_environment
from tipoff_client_sdk import Player, Transport, connect
from tipoff_gameserver import GameServer
from tipoff_shared.errors import ConfigError

WAYS: list[Transport] = ["udp", "websocket"]
DEADLINE = 10.0


@asynccontextmanager
async def arena(bots: int = 0, capacity: int = 16, tick_rate: float = 60.0) -> AsyncIterator[GameServer]:
    game = ArenaGame(bots=bots, tick_rate=tick_rate)
    async with GameServer(game, stand_alone=True, listen="127.0.0.1:0", capacity=capacity) as server:
        yield server


def world_tick(server: GameServer) -> int:
    assert isinstance(server.game, ArenaGame)
    return server.game.world.tick


async def watch(
    player: Player, view: ArenaView, until: Callable[[wire.Snapshot], bool]
) -> list[wire.Snapshot]:
    """All snapshots up to the first one that `until` is true for."""
    seen: list[wire.Snapshot] = []
    async with asyncio.timeout(DEADLINE):
        async for data in player:
            snapshot = view.receive(data)
            if snapshot is not None:
                seen.append(snapshot)
                if view.welcome is not None and until(snapshot):
                    return seen
    raise AssertionError("the match ended")


@pytest.mark.parametrize("way", WAYS)
async def test_a_second_client_sees_the_first_one_move_by_speed_times_time_and_stop_at_a_wall(
    way: Transport,
) -> None:
    """From (15, 7.5) to the left there is room until the wall that ends at x = 7."""
    async with (
        arena() as server,
        connect(server.url, game="arena", version="1", transports=[way]) as mover,
        connect(server.url, game="arena", version="1", transports=[way]) as witness,
    ):
        mine, seen = ArenaView(), ArenaView()
        await watch(mover, mine, lambda snapshot: True)
        await watch(witness, seen, lambda snapshot: True)
        assert mine.welcome is not None
        number = mine.welcome.number
        assert seen.welcome is not None
        assert seen.welcome.number != number
        start = seen.square(number)
        assert start is not None
        assert (start.x, start.y) == (15.0, 7.5)

        await mover.send(wire.encode_input(1, Input.LEFT))
        way_seen = await watch(witness, seen, lambda snapshot: _at(snapshot, number).x == 7.5)
        places = [(snapshot.tick, _at(snapshot, number)) for snapshot in way_seen]
        moving = [place for place in places if 7.5 < place[1].x < 15.0]
        assert len(moving) > 10
        (first_tick, first), (last_tick, last) = moving[0], moving[-1]
        # The server's ticks are its time: exactly speed times time, up to the wire's 1/1024.
        assert first.x - last.x == pytest.approx(SPEED * (last_tick - first_tick) / 60.0, abs=2 / wire.SCALE)
        assert all(place.y == 7.5 for _, place in places)

        stopped = (await watch(witness, seen, lambda snapshot: snapshot.tick >= last_tick + 10))[-1]
        assert _at(stopped, number) == Point(7.5, 7.5)


def _at(snapshot: wire.Snapshot, number: int) -> Point:
    return next(Point(square.x, square.y) for square in snapshot.squares if square.number == number)


@pytest.mark.parametrize("way", WAYS)
async def test_the_scripted_player_plays_and_reports(way: Transport) -> None:
    """What `tipoff play` is made of."""
    events: list[object] = []
    async with arena(bots=3) as server:
        report = await play(server.url, seconds=0.7, on_event=events.append, transports=[way])
    assert report.connected
    assert report.transport == way
    assert report.error == ""
    assert report.games == 1
    assert report.first_tick is not None
    assert report.last_tick is not None
    assert report.last_tick > report.first_tick + 5
    assert report.others == 3
    assert report.distance > 1
    assert report.rtt is not None
    assert [event for event in events if isinstance(event, Joined)]


async def test_bots_are_there_already_and_take_no_seat() -> None:
    """One seat, five bots, one player: in."""
    async with arena(bots=5, capacity=1) as server, connect(server.url, game="arena", version="1") as player:
        snapshot = (await watch(player, ArenaView(), lambda snapshot: True))[-1]
    assert sum(square.is_bot for square in snapshot.squares) == 5
    assert sum(not square.is_bot for square in snapshot.squares) == 1


async def test_bots_move_while_somebody_plays_and_rest_otherwise() -> None:
    """An empty server costs next to nothing."""
    async with arena(bots=2) as server:
        async with connect(server.url, game="arena", version="1") as player:
            seen = await watch(player, ArenaView(), lambda snapshot: snapshot.tick >= 20)
        assert _at(seen[0], FIRST_BOT) != _at(seen[-1], FIRST_BOT)
        await eventually(lambda: len(server.players) == 0)
        before, ticks = world_tick(server), server.ticks
        await eventually(lambda: server.ticks > ticks + 10)
        assert world_tick(server) == before


async def test_bots_make_room_where_a_snapshot_would_become_too_large() -> None:
    """Players come first."""
    async with (
        arena(bots=wire.MAX_SQUARES) as server,
        connect(server.url, game="arena", version="1") as player,
    ):
        snapshot = (await watch(player, ArenaView(), lambda snapshot: True))[-1]
    assert len(snapshot.squares) == wire.MAX_SQUARES
    assert sum(not square.is_bot for square in snapshot.squares) == 1


async def test_a_late_input_means_nothing() -> None:
    """A newer one was applied already: datagrams overtake each other."""
    async with arena() as server, connect(server.url, game="arena", version="1") as player:
        view = ArenaView()
        await watch(player, view, lambda snapshot: True)
        await player.send(wire.encode_input(9, Input.NONE))
        await player.send(wire.encode_input(3, Input.LEFT))
        await watch(player, view, lambda snapshot: view.me is not None and view.me.last_input == 9)
        last = (await watch(player, view, lambda snapshot: view.me is not None and snapshot.tick > 30))[-1]
        assert view.welcome is not None
        assert _at(last, view.welcome.number) == Point(15.0, 7.5)


@pytest.mark.parametrize("data", [b"\0", b"\x02" * 7, b"\x02\1\0\0\0\x10", bytes(1200)])
async def test_a_client_that_speaks_another_language_is_sent_away(data: bytes) -> None:
    """With the reason; the others play on."""
    async with (
        arena() as server,
        connect(server.url, game="arena", version="1") as honest,
        connect(server.url, game="arena", version="1", transports=["websocket"]) as stranger,
    ):
        await stranger.send(data)
        async with asyncio.timeout(DEADLINE):
            ending = await stranger.ended()
        assert ending.error is None
        assert "not understood" in ending.reason
        view = ArenaView()
        tick = (await watch(honest, view, lambda snapshot: True))[-1].tick
        await watch(honest, view, lambda snapshot: snapshot.tick > tick + 3)


@pytest.mark.parametrize(
    "environ",
    [{"ARENA_BOTS": "many"}, {"ARENA_BOTS": "-1"}, {"ARENA_BOTS": "100"}, {"ARENA_TICK_RATE": "nan"}],
)
def test_a_setting_that_cannot_be_used_says_what_is_allowed(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(environ))}=.* is expected"):
        arena_from_environment(environ)


async def test_a_lost_server_leads_to_a_new_game() -> None:
    """Killed and started anew at the same place: the player is back by itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    events: list[object] = []
    async with arena_process(listen) as first:
        playing = asyncio.create_task(
            play(
                f"http://{listen}", seconds=20, on_event=events.append, transports=["websocket"], rejoin=True
            )
        )
        await eventually(lambda: any(isinstance(event, wire.Snapshot) for event in events))
        first.kill()
        await eventually(lambda: any(isinstance(event, Lost) for event in events))
    async with arena_process(listen):
        await eventually(lambda: sum(isinstance(event, Joined) for event in events) == 2, timeout=15)
        playing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await playing
    first_game, second_game = [event for event in events if isinstance(event, Joined)]
    assert first_game.session_id != second_game.session_id
