"""A seat is held for a player whose connection was lost, and for nobody else."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import pytest

from tests.gameserver.players import (
    Recorder,
    UdpPlayer,
    WebSocketPlayer,
    ask,
    by_udp,
    by_websocket,
    ready,
    token_for,
    token_of,
)
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, LeaveReason, Player
from tipoff_gameserver.transports import websocket
from tipoff_shared.errors import MessageTooLarge
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.messages import Admitted, Failed
from tipoff_shared.netcode import ClientState

pytestmark = pytest.mark.row(99)

TTL = 60
"""Longer than any of these tests."""


@pytest.fixture
async def server(deployment: Context, game: Recorder) -> AsyncIterator[GameServer]:
    """Room for two."""
    context = dataclasses.replace(deployment, capacity=2)
    async with GameServer(game, context=context, tick_rate=100) as server:
        yield server


Way = Callable[[GameServer, bytes], AbstractAsyncContextManager[Any]]


def _by_udp(server: GameServer, token: bytes) -> AbstractAsyncContextManager[UdpPlayer]:
    return by_udp(token)


WAYS: dict[str, Way] = {"udp": _by_udp, "websocket": by_websocket}


class Crowd:
    """Players of one server; all leave in the end."""

    def __init__(self, server: GameServer, stack: AsyncExitStack) -> None:
        self.server = server
        self._stack = stack

    async def come(
        self, way: str, session: str = "s1", *, generation: int = 1, ttl: int = TTL, timeout: int = 20
    ) -> Any:
        """`timeout`: seconds of silence after which it is lost by UDP; short for those who vanish only."""
        token = token_for(
            self.server,
            session,
            client_id=int.from_bytes(session.encode(), "little"),
            generation=generation,
            resume_ttl=ttl,
            timeout=timeout,
        )
        return await self._stack.enter_async_context(WAYS[way](self.server, token))


@pytest.fixture
async def crowd(server: GameServer) -> AsyncIterator[Crowd]:
    async with AsyncExitStack() as stack:
        yield Crowd(server, stack)


def vanish(player: UdpPlayer | WebSocketPlayer) -> None:
    """No goodbye."""
    if isinstance(player, UdpPlayer):
        player.silent = True
    else:
        player.ws.transport.abort()


async def echoes(player: UdpPlayer | WebSocketPlayer, data: bytes) -> None:
    sent = player.send(data)
    if sent is not None:
        await sent
    assert await player.receive() == data


@pytest.mark.parametrize("again", WAYS)
@pytest.mark.parametrize("first", WAYS)
async def test_who_is_lost_comes_back_as_the_same_player(
    crowd: Crowd, game: Recorder, first: str, again: str
) -> None:
    """By the same transport or another one; the object, its id and its data stay."""
    vanish(await crowd.come(first, timeout=1))
    ((_, player),) = await game.saw("join")
    player.data = "mine"
    await game.saw("drop")
    assert (player.connected, player.dropped) == (False, True)
    assert player in crowd.server.players
    back = await crowd.come(again, generation=2)
    assert await game.saw("resume") == [("resume", player)]
    assert (player.connected, player.dropped, player.id, player.data) == (True, False, 1, "mine")
    assert player.transport == again
    await echoes(back, b"hello")
    assert [kind for kind, *_ in game.happened if kind != "message"] == ["join", "drop", "resume"]


async def test_what_is_sent_to_a_dropped_player_goes_nowhere_and_holds_nothing_up(
    crowd: Crowd, game: Recorder
) -> None:
    """Not even reliable messages, however many: they are neither kept nor the end of the player."""
    vanish(await crowd.come("websocket", timeout=1))
    ((_, player),) = await game.saw("drop")
    for _ in range(3000):
        player.send(bytes(1200), reliable=True)
    crowd.server.broadcast(b"all of you", reliable=True)
    with pytest.raises(MessageTooLarge):
        player.send(bytes(70_000))
    assert player.dropped
    back = await crowd.come("websocket", generation=2)
    await game.saw("resume")
    await echoes(back, b"first")


@pytest.mark.parametrize("way", WAYS)
async def test_the_seat_is_free_when_the_time_is_over(crowd: Crowd, game: Recorder, way: str) -> None:
    vanish(await crowd.come(way, ttl=1, timeout=1))
    ((_, player, reason),) = await game.saw("leave")
    assert reason is LeaveReason.TIMED_OUT
    assert [kind for kind, *_ in game.happened] == ["join", "drop", "leave"]
    assert (player.connected, player.dropped) == (False, False)
    assert len(crowd.server.players) == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_token_made_while_the_seat_was_held_is_of_no_use_afterwards(
    crowd: Crowd, game: Recorder, way: str
) -> None:
    vanish(await crowd.come("websocket", ttl=1, timeout=1))
    await game.saw("leave")
    if way == "websocket":
        refused = await crowd.come(way, generation=2)
        assert isinstance(refused.answer, Failed)
        assert "given up" in refused.answer.message
    else:
        token = token_for(crowd.server, "s1", client_id=7, generation=2, resume_ttl=TTL)
        async with by_udp(token, wait=False) as late:
            await late.reaches(ClientState.CONNECTION_DENIED)
    assert len(await game.saw("join")) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_goodbye_frees_the_seat_at_once(crowd: Crowd, game: Recorder, way: str) -> None:
    player = await crowd.come(way)
    await game.saw("join")
    if isinstance(player, UdpPlayer):
        player.leave()
    else:
        await player.ws.close()
    ((_, _, reason),) = await game.saw("leave")
    assert reason is LeaveReason.LEFT
    assert "drop" not in [kind for kind, *_ in game.happened]


@pytest.mark.parametrize("dropped", [False, True], ids=["connected", "dropped"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_kick_frees_the_seat_at_once(crowd: Crowd, game: Recorder, way: str, dropped: bool) -> None:
    """And the kicked player cannot come back to it."""
    client = await crowd.come(way, timeout=1 if dropped else 20)
    ((_, player),) = await game.saw("join")
    if dropped:
        vanish(client)
        await game.saw("drop")
    player.kick("enough")
    ((_, _, reason),) = await game.saw("leave")
    assert reason is LeaveReason.KICKED
    refused = await crowd.come("websocket", generation=2)
    assert isinstance(refused.answer, Failed)


@pytest.mark.parametrize("again", WAYS)
@pytest.mark.parametrize("first", WAYS)
async def test_a_newer_connection_replaces_the_older_one(
    crowd: Crowd, game: Recorder, first: str, again: str
) -> None:
    """The server had not noticed the loss, or there was none: the older one hears 4002, the game one drop and one
    resume; what the older one still sends reaches nobody."""
    older = await crowd.come(first)
    ((_, player),) = await game.saw("join")
    newer = await crowd.come(again, generation=2)
    await game.saw("resume")
    assert [kind for kind, *_ in game.happened] == ["join", "drop", "resume"]
    if isinstance(older, UdpPlayer):
        await older.reaches(ClientState.DISCONNECTED)
    else:
        await asyncio.wait_for(older.ws.wait_closed(), 20)
        assert older.ws.close_code == 4002
    await echoes(newer, b"hello")
    assert player.connected
    assert len(crowd.server.players) == 1


@pytest.mark.parametrize("generation", [0, 1])
async def test_an_older_or_equal_token_replaces_nobody(crowd: Crowd, game: Recorder, generation: int) -> None:
    current = await crowd.come("websocket", generation=1)
    refused = await crowd.come("websocket", generation=generation)
    assert isinstance(refused.answer, Failed)
    await echoes(current, b"still here")
    assert [kind for kind, *_ in game.happened if kind != "message"] == ["join"]


async def test_a_held_seat_is_taken_and_its_owner_needs_no_other(crowd: Crowd, game: Recorder) -> None:
    """A full server stays full while one of its players is away, and takes that one back."""
    vanish(await crowd.come("udp", "s1", timeout=1))
    await crowd.come("udp", "s2")
    await game.saw("drop")
    refused = await crowd.come("websocket", "s3")
    assert isinstance(refused.answer, Failed)
    assert "full" in refused.answer.message
    await echoes(await crowd.come("udp", "s1", generation=2), b"back")


async def test_another_session_with_the_same_client_id_takes_no_held_seat(
    crowd: Crowd, game: Recorder
) -> None:
    vanish(await crowd.come("websocket", "s1", timeout=1))
    await game.saw("drop")
    token = token_for(
        crowd.server, "s9", client_id=int.from_bytes(b"s1", "little"), generation=9, resume_ttl=TTL
    )
    async with by_websocket(crowd.server, token) as other:
        assert isinstance(other.answer, Failed)


async def test_a_player_comes_back_to_a_server_that_drains(crowd: Crowd, game: Recorder) -> None:
    """It plays there; nobody new comes in."""
    vanish(await crowd.come("websocket", "s1", timeout=1))
    await game.saw("drop")
    crowd.server.drain("an update")
    assert isinstance((await crowd.come("websocket", "s2")).answer, Failed)
    assert isinstance((await crowd.come("websocket", "s1", generation=2)).answer, Admitted)


async def test_the_matchmaker_sees_the_session_until_the_seat_is_free(
    crowd: Crowd, game: Recorder, kv: Buckets
) -> None:
    """`active_connections` has it through drop and return, and no longer when the time is over."""

    async def connected() -> bool:
        return await kv.active_connections.get("s1") is not None

    vanish(await crowd.come("websocket", timeout=1))
    await eventually(connected, "the session is written", 20)
    await game.saw("drop")
    vanish(await crowd.come("websocket", generation=2, timeout=1))
    await game.saw("drop", 2)
    assert await connected()
    vanish(await crowd.come("websocket", generation=3, ttl=1, timeout=1))
    await game.saw("drop", 3)
    assert await connected()


async def test_without_a_time_in_the_token_a_lost_player_has_left(crowd: Crowd, game: Recorder) -> None:
    """Tokens of an earlier matchmaker, and of games with `resume_ttl = 0`."""
    vanish(await crowd.come("udp", ttl=0, timeout=1))
    await game.saw("leave")
    assert [kind for kind, *_ in game.happened] == ["join", "leave"]


async def test_who_is_dropped_when_the_server_ends_has_left(deployment: Context, game: Recorder) -> None:
    async with AsyncExitStack() as stack:
        async with GameServer(game, context=deployment, tick_rate=100) as server:
            vanish(await Crowd(server, stack).come("websocket"))
            await game.saw("drop")
        ((_, _, reason),) = await game.saw("leave")
        assert reason is LeaveReason.CLOSED


async def test_a_client_that_takes_nothing_is_lost_when_it_is_silent_and_slow_when_it_is_not(
    crowd: Crowd, game: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network takes nothing either: who may only have lost the connection keeps its seat."""
    monkeypatch.setattr(websocket, "STALLED_AFTER", 0.5)
    monkeypatch.setattr(websocket, "LOST_AFTER", 0.0)
    silent = await crowd.come("websocket", "s1")
    silent.ws.transport.pause_reading()
    ((_, lost),) = await game.saw("join")
    await _until_it_takes_no_more(lost)
    await game.saw("drop")
    monkeypatch.setattr(websocket, "LOST_AFTER", 1000.0)
    slow = await crowd.come("websocket", "s2")
    slow.ws.transport.pause_reading()
    (*_, (_, other)) = await game.saw("join", 2)
    await _until_it_takes_no_more(other)
    ((_, left, reason),) = await game.saw("leave")
    assert (left, reason) == (other, LeaveReason.TOO_SLOW)
    assert lost.dropped


async def _until_it_takes_no_more(player: Player) -> None:
    def sent_in_vain() -> bool:
        for _ in range(100):
            player.send(bytes(1200), reliable=True)
        return not player.connected

    await eventually(sent_in_vain, "its connection takes no more", 30)


async def test_a_close_that_is_no_goodbye_is_a_lost_connection(crowd: Crowd, game: Recorder) -> None:
    """A client's library closes with 1011 when it hears nothing; who leaves closes with another code."""
    first = await crowd.come("websocket", "s1")
    await first.ws.close(1011, "keepalive ping timeout")
    await game.saw("drop")
    second = await crowd.come("websocket", "s2")
    await second.ws.close(4321, "bye")
    ((_, left, reason),) = await game.saw("leave")
    assert (left.session_id, reason) == ("s2", LeaveReason.LEFT)


async def test_a_stand_alone_server_holds_seats_where_it_is_told_to(game: Recorder) -> None:
    """As a matchmaker would: a key with the seat, the same seat by it, 403 for another key, 409 when it is given up."""
    async with GameServer(game, stand_alone=True, listen="127.0.0.1:0", capacity=1, resume_ttl=TTL) as server:
        seat = await ready(server)
        assert seat.resume_ttl == TTL

        def request(key: object) -> str:
            return json.dumps({"game": "g", "version": "1", "session": seat.session_id, "resume_key": key})

        async with by_websocket(server, token_of(seat)) as first:
            vanish(first)
            await game.saw("drop")
            (refused,) = [m for m in await ask(server.url, request("x" * 22)) if isinstance(m, Failed)]
            assert refused.code == 403
            again = await ready(server, request(seat.resume_key))
            assert (again.session_id, again.client_id) == (seat.session_id, seat.client_id)
            async with by_udp(token_of(again)) as back:
                await game.saw("resume")
                await echoes(back, b"hello")
        await game.saw("leave")
        (over,) = [m for m in await ask(server.url, request(seat.resume_key)) if isinstance(m, Failed)]
        assert over.code == 409


async def test_a_stand_alone_server_gives_no_key_by_default(alone: GameServer) -> None:
    assert not (await ready(alone)).resume_key
    with pytest.raises(ValueError, match="resume_ttl=-1"):
        GameServer(Recorder(), resume_ttl=-1)
