"""How a client behaves whose connection is lost, with a matchmaker and a server that do what the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tipoff_client_sdk import reconnect
from tipoff_client_sdk.connection import Player
from tipoff_client_sdk.errors import Closed, ConnectionFailed, Refused, ServerLost
from tipoff_client_sdk.inbox import Ending, Inbox, Line
from tipoff_client_sdk.matchmaking import Progress, Stage
from tipoff_client_sdk.reconnect import Reconnector
from tipoff_shared.errors import Conflict, NotAllowed, SlowDown, TipoffError, Unavailable
from tipoff_shared.messages import SessionReady

pytestmark = pytest.mark.row(99)

SEAT = SessionReady("dG9rZW4=", "127.0.0.1", 1, session_id="s1", resume_key="k" * 22, resume_ttl=30.0)
LOST = Ending("silence", ServerLost("silence"))


class Channel:
    """A connection that only notes what it is told."""

    transport = "udp"
    server = "127.0.0.1:1"
    rtt = None
    client_index = 0
    max_message = 1200
    reliable = True

    def __init__(self, line: Line) -> None:
        self.line = line
        self.sent: list[bytes] = []
        self.goodbye = False
        self.abandoned = False

    async def send(self, message: bytes, reliable: bool = False) -> None:
        if (ending := self.line.ending) is not None:
            raise ending.error or Closed(ending.reason)
        self.sent.append(message)

    async def close(self) -> None:
        self.goodbye = True

    async def abandon(self) -> None:
        self.abandoned = True


class World:
    """`answers`: what the matchmaker says to each request, in order, the last one for ever; `dials` likewise."""

    def __init__(self, patience: float = 20.0) -> None:
        self.inbox = Inbox(8)
        self.answers: list[Any] = [SEAT]
        self.dials: list[Any] = [None]
        self.asked = 0
        self.progress: list[Progress] = []
        self.heard = asyncio.Event()
        self.reconnector = Reconnector(
            self.inbox, self._ask, self._dial, self._report, session_id="s1", patience=patience
        )
        self.channels = [Channel(self.reconnector.line())]
        self.player = Player(
            self.channels[0], self.inbox, session_id="s1", client_id="7", deployment_id="arena-1"
        )
        self.reconnector.begin(self.player)
        self.task = asyncio.create_task(self.reconnector.run())

    def _report(self, progress: Progress) -> None:
        self.progress.append(progress)
        self.heard.set()

    async def _ask(self, within: float) -> SessionReady:
        self.asked += 1
        return _next(self.answers)  # type: ignore[no-any-return] # a SessionReady

    async def _dial(self, seat: SessionReady, line: Line, within: float) -> Channel:
        _next(self.dials)
        self.channels.append(Channel(line))
        return self.channels[-1]

    async def until(self, stage: Stage, count: int = 1) -> None:
        async with asyncio.timeout(30):
            while [p.stage for p in self.progress].count(stage) < count:
                self.heard.clear()
                await self.heard.wait()

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


def _next(script: list[Any]) -> Any:
    step = script.pop(0) if len(script) > 1 else script[0]
    if isinstance(step, Exception):
        raise step
    return step


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.close()


async def test_a_lost_connection_is_replaced_without_a_goodbye(world: World) -> None:
    """A goodbye would give up the seat."""
    world.channels[0].line.put(b"before")
    world.channels[0].line.end(LOST)
    assert world.player.reconnecting
    assert not world.player.connected
    await world.until(Stage.RESUMED)
    assert (world.channels[0].abandoned, world.channels[0].goodbye) == (True, False)
    assert world.player.connected
    world.channels[0].line.put(b"late, by the old connection")
    world.channels[1].line.put(b"after")
    assert world.player.take_all() == [b"before", b"after"]
    assert [p.stage for p in world.progress] == [Stage.DROPPED, Stage.RESUMED]


async def test_reliable_messages_wait_and_others_are_dropped(world: World) -> None:
    world.answers = [Unavailable("no matchmaker is running"), SEAT]
    world.channels[0].line.end(LOST)
    await world.player.send(b"where I was", reliable=False)
    await world.player.send(b"what I bought", reliable=True)
    assert world.channels[0].sent == []
    assert world.channels[1].sent == [b"what I bought"]


@pytest.mark.parametrize(
    "passing",
    [
        Unavailable("no matchmaker is running"),
        SlowDown("too many requests", retry_after=0.2),
        ConnectionFailed("no matchmaker at ws://127.0.0.1:1/"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_pass_is_tried_again(world: World, passing: TipoffError) -> None:
    world.answers = [passing, passing, SEAT]
    world.dials = [ConnectionFailed("udp: no answer"), Refused("not now"), None]
    world.channels[0].line.end(LOST)
    await world.until(Stage.RESUMED)
    assert world.asked == 5


@pytest.mark.parametrize(
    "final",
    [Conflict("this session has ended"), NotAllowed("this key is not the session's")],
    ids=lambda error: type(error).__name__,
)
async def test_an_answer_that_stays_ends_the_player_at_once(world: World, final: TipoffError) -> None:
    world.answers = [final]
    world.channels[0].line.end(LOST)
    with pytest.raises(ServerLost, match="silence; not reconnected: this"):
        await world.player.receive()
    with pytest.raises(ServerLost):
        await world.player.send(b"x", reliable=True)
    assert world.asked == 1
    assert not world.player.reconnecting


async def test_a_reliable_send_that_waits_ends_with_the_player(world: World) -> None:
    world.answers = [Unavailable("away"), Conflict("this session has ended")]
    world.channels[0].line.end(LOST)
    with pytest.raises(ServerLost):
        await world.player.send(b"x", reliable=True)


async def test_another_seat_is_not_taken_for_the_same(world: World) -> None:
    """As a matchmaker of an earlier release might answer."""
    world.answers = [SessionReady("dG9rZW4=", "127.0.0.1", 1, session_id="s2")]
    world.channels[0].line.end(LOST)
    with pytest.raises(ServerLost, match="another seat"):
        await world.player.receive()
    assert len(world.channels) == 1


async def test_a_closed_port_ends_it_soon(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's process is gone, and the seat with it."""
    monkeypatch.setattr(reconnect, "CLOSED_FOR", 0.3)
    world.dials = [ConnectionFailed("udp 127.0.0.1:1: nothing listens there", closed=True)]
    world.channels[0].line.end(LOST)
    with pytest.raises(ServerLost, match="nothing listens there"):
        await world.player.receive()


async def test_patience_ends() -> None:
    world = World(patience=0.3)
    world.answers = [Unavailable("away")]
    world.channels[0].line.end(LOST)
    with pytest.raises(ServerLost, match="away"):
        await world.player.receive()
    await world.close()


async def test_an_orderly_end_is_the_end(world: World) -> None:
    """Kicked, replaced by a newer connection, the match is over: nobody asks for the seat again."""
    world.channels[0].line.end(Ending.closed(4002, "you have connected anew"))
    with pytest.raises(Closed) as over:
        await world.player.receive()
    assert over.value.close_code == 4002
    assert world.asked == 0


async def test_a_loss_right_after_the_return_is_a_loss_again(world: World) -> None:
    world.channels[0].line.end(LOST)
    await world.until(Stage.RESUMED)
    world.channels[-1].line.end(LOST)
    await world.until(Stage.RESUMED, 2)
    assert [p.stage for p in world.progress] == [Stage.DROPPED, Stage.RESUMED] * 2
    assert world.player.connected


async def test_a_fault_of_ours_ends_the_player_and_not_its_patience(world: World) -> None:
    world.dials = [RuntimeError("a bug")]
    world.channels[0].line.end(LOST)
    with pytest.raises(ServerLost, match="a bug"):
        await world.player.receive()
