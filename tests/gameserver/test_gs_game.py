"""A game may rely on order, on one callback at a time, and on a bug harming nobody else."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from tests.gameserver.players import Recorder, by_udp, by_websocket, ready, token_of
from tests.polling import eventually
from tipoff_gameserver import Game as SdkGame
from tipoff_gameserver import GameFailed, GameServer, LeaveReason, Player


def server_for(game: object, **options: object) -> GameServer:
    return GameServer(game, stand_alone=True, listen="127.0.0.1:0", **options)  # type: ignore[arg-type]


async def test_ticks_come_at_their_rate_with_a_constant_dt() -> None:
    """A hundred ticks of 1/200 s take half a second."""
    done = asyncio.Event()
    dts: set[float] = set()

    class Game:
        def tick(self, server: GameServer, dt: float) -> None:
            dts.add(dt)
            if server.ticks == 100:
                done.set()

    async with server_for(Game(), tick_rate=200) as server:
        began = time.perf_counter()
        async with asyncio.timeout(5):
            await done.wait()
        took = time.perf_counter() - began
    assert dts == {1 / 200}
    assert 0.4 < took < 1.0
    assert server.time == pytest.approx(server.ticks / 200)


async def test_async_callbacks_never_overlap() -> None:
    """While one callback awaits, messages and ticks wait for it, in order."""
    running = 0
    order: list[bytes] = []

    class Game:
        async def on_message(self, player: Player, data: bytes) -> None:
            await self._alone()
            order.append(data)
            player.send(data)

        async def tick(self, server: GameServer, dt: float) -> None:
            await self._alone()

        async def _alone(self) -> None:
            nonlocal running
            running += 1
            assert running == 1
            await asyncio.sleep(0.002)  # in which another callback could begin
            running -= 1

    sent = [bytes((number,)) for number in range(20)]
    async with (
        server_for(Game(), tick_rate=200) as server,
        by_websocket(server, token_of(await ready(server))) as player,
    ):
        for data in sent:
            await player.send(data)
        for data in sent:
            assert await player.receive() == data
    assert order == sent


async def test_a_bug_for_one_player_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Game(Recorder):
        def on_message(self, player: Player, data: bytes) -> None:
            if data == b"bad":
                raise KeyError("what a bug")
            super().on_message(player, data)

    async with server_for(Game()) as server:
        one, two = token_of(await ready(server)), token_of(await ready(server))
        async with by_websocket(server, one) as first, by_websocket(server, two) as second:
            await first.send(b"bad")
            await first.send(b"good")
            assert await first.receive() == b"good"
            await second.send(b"good")
            assert await second.receive() == b"good"
    assert "the game's on_message failed" in caplog.text
    assert "KeyError: 'what a bug'" in caplog.text


async def test_a_callback_that_awaits_something_cancelled_does_not_stop_the_game() -> None:
    """CancelledError is no Exception, yet it is the game's bug like any other."""
    enough = asyncio.Event()

    class Game:
        async def tick(self, server: GameServer, dt: float) -> None:
            if server.ticks == 10:
                enough.set()
            task = asyncio.create_task(asyncio.Event().wait())
            task.cancel()
            await task

    async with server_for(Game(), tick_rate=200), asyncio.timeout(5):
        await enough.wait()


async def test_a_player_whose_on_join_fails_is_sent_away_and_hears_that_the_game_failed() -> None:
    """And nothing of the exception."""

    class Game(Recorder):
        def on_join(self, player: Player) -> None:
            super().on_join(player)
            raise RuntimeError("no room for you")

    game = Game()
    async with server_for(game) as server:
        async with by_websocket(server, token_of(await ready(server))) as player:
            await player.ws.wait_closed()
            assert player.ws.close_code == 4003
            assert player.ws.close_reason == "the game failed: it could not let you in"
        (leave,) = await game.saw("leave")
        assert leave[2] == LeaveReason.KICKED


async def test_a_tick_that_fails_now_and_then_does_not_end_the_game(caplog: pytest.LogCaptureFixture) -> None:
    enough = asyncio.Event()

    class Game:
        def tick(self, server: GameServer, dt: float) -> None:
            if server.ticks >= 50:
                enough.set()
            if server.ticks % 3:
                raise RuntimeError("sometimes")

    async with server_for(Game(), tick_rate=500, max_tick_failures=3):
        async with asyncio.timeout(5):
            await enough.wait()
    tracebacks = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert 1 <= len(tracebacks) <= 2  # not fifty of them


async def test_a_tick_that_always_fails_ends_the_server_with_a_clear_message() -> None:
    class Game:
        def tick(self, server: GameServer, dt: float) -> None:
            raise ZeroDivisionError("the same every time")

    server = server_for(Game(), tick_rate=500, max_tick_failures=5)
    with pytest.raises(GameFailed, match=r"failed 5 times in a row.*ZeroDivisionError: the same every time"):
        async with asyncio.timeout(5):
            await server.run()


async def test_a_test_of_a_game_whose_tick_fails_sees_that_error() -> None:
    """`async with` raises what went wrong, in place of what the test missed because of it."""

    class Game:
        def tick(self, server: GameServer, dt: float) -> None:
            raise ZeroDivisionError("the same every time")

    async def play() -> None:
        async with server_for(Game(), tick_rate=500, max_tick_failures=5) as server:
            async with asyncio.timeout(5):
                await server.wait_ended()
            raise AssertionError("what the test waited for did not come")

    with pytest.raises(GameFailed, match="ZeroDivisionError"):
        await play()


def test_a_class_in_place_of_a_game_is_told() -> None:
    class Game:
        def on_join(self, player: Player) -> None: ...

    with pytest.raises(TypeError, match=r"GameServer\(Game\(\), \.\.\.\)"):
        GameServer(Game)


async def test_an_on_start_that_fails_keeps_the_server_from_starting() -> None:
    class Game:
        async def on_start(self, server: GameServer) -> None:
            raise FileNotFoundError("map.json")

    with pytest.raises(GameFailed, match=r"on_start failed with FileNotFoundError: map.json"):
        await server_for(Game()).run()


async def test_kicking_and_looping_go_together() -> None:
    """`players` may be looped over while the loop changes who is there."""

    class Game(Recorder):
        def on_message(self, player: Player, data: bytes) -> None:
            assert self.server is not None
            for other in self.server.players:
                other.kick("all out")
                assert not other.connected
                other.send(b"too late")  # does nothing

    game = Game()
    async with server_for(game) as server:
        one, two = token_of(await ready(server)), token_of(await ready(server))
        async with by_websocket(server, one) as first, by_udp(two):
            await game.saw("join", 2)
            await first.send(b"go")
            leaves = await game.saw("leave", 2)
            await first.ws.wait_closed()
            assert (first.ws.close_code, first.ws.close_reason) == (4000, "all out")
    assert {leave[2] for leave in leaves} == {LeaveReason.KICKED}


async def test_broadcast_reaches_all_but_the_excluded() -> None:
    class Game(Recorder):
        def on_message(self, player: Player, data: bytes) -> None:
            assert self.server is not None
            self.server.broadcast(data, exclude=player)
            player.send(b"done")

    game = Game()
    async with server_for(game) as server:
        one, two = token_of(await ready(server)), token_of(await ready(server))
        async with by_websocket(server, one) as first, by_udp(two) as second:
            await game.saw("join", 2)
            await first.send(b"news")
            assert await second.receive() == b"news"
            assert await first.receive() == b"done"


async def test_messages_of_a_wrong_size_are_refused_where_they_are_sent(
    alone: GameServer, game: Recorder
) -> None:
    async with by_websocket(alone, token_of(await ready(alone))):
        ((_, player),) = await game.saw("join")
        for data in (b"", bytes(1201)):
            with pytest.raises(ValueError, match="1 to 1200 bytes"):
                player.send(data)
        player.send(bytes(1200))


async def test_a_player_who_floods_is_slowed_down_alone() -> None:
    game = Recorder()
    async with (
        server_for(game, message_limit=5) as server,
        by_websocket(server, token_of(await ready(server))) as player,
    ):
        for _ in range(30):
            await player.send(b"x")
        ((_, seen),) = await game.saw("join")
        await eventually(lambda: seen.messages_dropped >= 20, "messages are dropped")
        assert seen.connected


async def test_shutdown_may_be_called_from_a_plain_callback() -> None:
    class Game(Recorder):
        def tick(self, server: GameServer, dt: float) -> None:
            if server.ticks == 3:
                server.shutdown("someone has won")

    game = Game()
    async with asyncio.timeout(5):
        await server_for(game, tick_rate=200).run()
    assert game.happened[-1] == ("stop",)


async def test_shutdown_may_be_awaited_in_an_async_callback() -> None:
    class Game(Recorder):
        async def on_message(self, player: Player, data: bytes) -> None:
            assert self.server is not None
            await self.server.shutdown()

    game = Game()
    server = server_for(game)
    running = asyncio.create_task(server.run())
    await eventually(lambda: bool(server.url), "the server is up")
    async with by_websocket(server, token_of(await ready(server))) as player:
        await player.send(b"end")
        await player.ws.wait_closed()
        assert player.ws.close_code == 1001
    async with asyncio.timeout(5):
        await running
    assert [event[0] for event in game.happened] == ["join", "leave", "stop"]
    assert game.happened[1][2] == LeaveReason.CLOSED


async def test_background_work_does_not_hold_up_the_game(caplog: pytest.LogCaptureFixture) -> None:
    forever = asyncio.Event()

    async with server_for(SdkGame(), tick_rate=200) as server:
        slow = server.background(_wait(forever))
        server.background(_fail())
        await eventually(lambda: server.ticks > 5, "ticks go on")
    assert slow.cancelled()
    assert "background work is broken" in caplog.text


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _fail() -> None:
    raise RuntimeError("background work is broken")


def test_a_callback_with_the_wrong_arguments_is_told_at_once() -> None:
    class Game:
        def tick(self, dt: float) -> None: ...

    with pytest.raises(TypeError, match=r"Game.tick is called as tick\(server, dt\)"):
        GameServer(Game())


@pytest.mark.parametrize("game", [5, "pong", None, object()])
def test_what_is_no_game_is_refused(game: object) -> None:
    """With the methods that it could have; a `Game` without any of its own is one."""
    with pytest.raises(TypeError, match="has none of the methods of a game, which are on_start, on_join"):
        GameServer(game)
    GameServer(SdkGame())


def test_a_callback_with_a_typo_is_told(caplog: pytest.LogCaptureFixture) -> None:
    class Game:
        def on_mesage(self, player: Player, data: bytes) -> None: ...

    GameServer(Game())
    assert "Game.on_mesage is never called; did you mean on_message?" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tick_rate": 0}, "tick_rate"),
        ({"tick_rate": float("nan")}, "tick_rate"),
        ({"capacity": 0}, "capacity"),
        ({"udp": False, "websocket": False}, "cannot be reached"),
    ],
)
def test_numbers_that_cannot_work_are_told_at_once(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        server_for(SdkGame(), **options)
