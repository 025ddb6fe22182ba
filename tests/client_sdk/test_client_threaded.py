"""The player of a frame loop: nothing ever waits, and `poll` returns everything."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.client_sdk.stubs import Echo
from tests.polling import eventually
from tipoff_client_sdk import (
    Ended,
    Event,
    Joined,
    Message,
    Progress,
    ThreadedPlayer,
    Transport,
    connect_threaded,
)
from tipoff_gameserver import GameServer, LeaveReason
from tipoff_shared.errors import Malformed, TooLarge


class Frames:
    """What a frame loop saw."""

    def __init__(self, player: ThreadedPlayer) -> None:
        self.player = player
        self.events: list[Event] = []

    def saw(self, kind: type[Event]) -> bool:
        self.events += self.player.poll()
        return any(isinstance(event, kind) for event in self.events)

    @property
    def messages(self) -> list[bytes]:
        return [event.data for event in self.events if isinstance(event, Message)]


@pytest.mark.parametrize("way", ["udp", "websocket"])
async def test_a_frame_loop_plays(echo: GameServer, way: Transport) -> None:
    """Progress, joined, messages; and at the end the server hears the goodbye."""
    with connect_threaded(echo.url, game="any", version="1", transports=[way]) as player:
        frames = Frames(player)
        assert not player.send(b"too early")
        await eventually(lambda: frames.saw(Joined))
        assert isinstance(frames.events[0], Progress)
        joined = next(event for event in frames.events if isinstance(event, Joined))
        assert joined.transport == way
        for number in range(10):
            assert player.send(bytes([number]))
        await eventually(lambda: frames.saw(Message) and len(frames.messages) == 10)
        assert sorted(frames.messages) == [bytes([number]) for number in range(10)]
        assert player.rtt is not None
        # In a test the server's loop is this one, so the goodbye cannot be waited for by blocking it.
        player.close(timeout=0)
        await eventually(lambda: frames.saw(Ended))
    assert isinstance(echo.game, Echo)
    async with asyncio.timeout(2):
        assert await echo.game.left.get() is LeaveReason.LEFT
    ended = frames.events[-1]
    assert isinstance(ended, Ended)
    assert ended.error is None
    assert player.poll() == []


async def test_poll_and_send_never_wait(echo: GameServer) -> None:
    """Not while it connects, not in the game, not after its end: a frame has 16 ms."""
    took: list[float] = []
    player = connect_threaded(echo.url, game="any", version="1")
    frames = Frames(player)

    def frame() -> bool:
        began = time.perf_counter()
        player.send(b"frame")
        joined = frames.saw(Joined)
        took.append(time.perf_counter() - began)
        return joined and len(frames.messages) > 50

    async with asyncio.timeout(5):
        over = False
        while not over:
            over = frame()
            await asyncio.sleep(0.005)  # until the next frame: a frame loop is what is tested
    player.close(timeout=0)
    await eventually(lambda: frames.saw(Ended))
    player.send(b"over")
    assert sorted(took)[-2] < 0.1, "generous: two cores, many processes, and one long pause of theirs"


async def test_what_is_sent_before_close_still_goes_out(echo: GameServer) -> None:
    """A last word is sent, then the goodbye."""
    assert isinstance(echo.game, Echo)
    heard: list[bytes] = []
    echo.game.on_message = lambda player, data: heard.append(data)  # type: ignore[method-assign,misc]  # a spy
    player = connect_threaded(echo.url, game="any", version="1", transports=["websocket"])
    await eventually(lambda: player.connected)
    player.send(b"gg")
    player.close(timeout=0)
    async with asyncio.timeout(5):
        await echo.game.left.get()
    await eventually(lambda: player.ended is not None)


async def test_a_failure_comes_as_an_event() -> None:
    """Nobody is there: `Ended` with the typed error, nothing is raised into the frame loop."""
    with connect_threaded("http://127.0.0.1:1", game="any", version="1", timeout=5) as player:
        frames = Frames(player)
        await eventually(lambda: frames.saw(Ended))
    ended = frames.events[-1]
    assert isinstance(ended, Ended)
    assert ended.error is not None
    assert ended.error.code == 503


async def test_a_wrong_argument_comes_as_an_event_too() -> None:
    with connect_threaded("not a url", game="any", version="1") as player:
        frames = Frames(player)
        await eventually(lambda: frames.saw(Ended))
    assert isinstance(player.ended, Ended)
    assert isinstance(player.ended.error, Malformed)


async def test_close_while_connecting_ends_the_thread(echo: GameServer) -> None:
    """And may be called twice."""
    player = connect_threaded(echo.url, game="any", version="1")
    player.close(timeout=0)
    player.close(timeout=0)
    await eventually(lambda: player.ended is not None)
    assert player.ended == Ended("closed by this side")


async def test_messages_of_a_wrong_size_are_a_mistake_of_the_caller(echo: GameServer) -> None:
    with connect_threaded(echo.url, game="any", version="1") as player:
        with pytest.raises(TooLarge):
            player.send(bytes(65537))
        with pytest.raises(Malformed):
            player.send(b"")
        player.close(timeout=0)
        await eventually(lambda: player.ended is not None)
