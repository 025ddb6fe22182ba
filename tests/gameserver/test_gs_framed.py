"""Clients by UDP that know frames: the server acknowledges what they send, and a slot keeps nothing of its last one."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.gameserver.players import FramedUdp, Recorder, by_udp, by_udp_framed, ready, token_for, token_of
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, LeaveReason, Player
from tipoff_gameserver.transports import udp
from tipoff_shared.framing import MessageChannel, encode_close
from tipoff_shared.framing.close_code import CloseCode

FRAGMENT, CLOSE = 2, 4
"""How a part of a frame begins."""


@pytest.fixture
async def server(deployment: Context, game: Recorder) -> AsyncIterator[GameServer]:
    """Room for two."""
    context = dataclasses.replace(deployment, capacity=2)
    async with GameServer(game, context=context, tick_rate=100) as server:
        yield server


def say(client: FramedUdp, channel: MessageChannel, data: bytes) -> None:
    """Send reliably, once: nothing is repeated."""
    assert channel.send(data)
    for frame in channel.frames(asyncio.get_running_loop().time()):
        client.send(frame)


async def is_acknowledged(client: FramedUdp, channel: MessageChannel) -> None:
    def all_has_arrived() -> bool:
        for frame in client.frames:  # an ack may be taken in twice
            channel.receive(frame, asyncio.get_running_loop().time())
        return channel.idle

    await eventually(all_has_arrived, "all is acknowledged", 20)


class Silent(Recorder):
    """Answers nothing, so nothing that it sends carries an ack."""

    def on_message(self, player: Player, data: bytes) -> None:
        self.happened.append(("message", player, data))
        self.news.set()


@pytest.mark.parametrize("size", [1, 1100, 12_000])
async def test_a_reliable_message_is_acknowledged_though_the_game_answers_none(size: int) -> None:
    """Each of several: the server has nothing on its way when the next one comes."""
    game = Silent()
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
        by_udp_framed(token_of(await ready(server))) as client,
    ):
        channel = MessageChannel()
        for number in range(3):
            say(client, channel, bytes([number]) * size)
            await is_acknowledged(client, channel)
        heard = [data for _, _, data in await game.saw("message", 3)]
        assert heard == [bytes([number]) * size for number in range(3)]


@pytest.mark.parametrize("framed", [True, False], ids=["framed", "plain"])
@pytest.mark.parametrize("why", ["kicked", "too slow", "lost"])
async def test_who_gets_the_slot_of_one_whose_messages_never_arrived_stays(
    deployment: Context, game: Recorder, monkeypatch: pytest.MonkeyPatch, why: str, framed: bool
) -> None:
    """What was on its way to the one before is neither sent to the next one nor held against it."""
    monkeypatch.setattr(udp, "LINGER", 0.0)
    monkeypatch.setattr(udp, "LOST_AFTER", 0.0 if why == "lost" else 1000.0)
    async with GameServer(game, context=dataclasses.replace(deployment, capacity=1)) as server:
        async with by_udp_framed(token_for(server, "s1", timeout=30)) as deaf:
            ((_, player),) = await game.saw("join")
            player.send(b"unheard", reliable=True)
            if why == "kicked":
                player.kick("next, please")
            else:
                overwhelm(player)
            await game.saw("leave")
            await eventually(lambda: any(f[0] == CLOSE for f in deaf.frames), "the close has come", 20)
        token = token_for(server, "s2", timeout=30)
        if framed:
            async with by_udp_framed(token) as client:
                await _plays(client, game)
                assert not [frame for frame in client.frames if frame[0] in (FRAGMENT, CLOSE)]
        else:
            async with by_udp(token) as plain:
                for data in (b"1", b"2", b"3"):
                    plain.send(data)
                    assert await plain.receive() == data
        assert [kind for kind, *_ in game.happened if kind != "message"][:3] == ["join", "leave", "join"]


async def _plays(client: FramedUdp, game: Recorder) -> None:
    channel = MessageChannel()
    for number in range(3):
        say(client, channel, bytes([number]))
        await is_acknowledged(client, channel)
    await game.saw("message", 3)


def overwhelm(player: Player) -> None:
    """Send reliably, without an end, what the client does not acknowledge."""
    for _ in range(5000):
        if not player.connected:
            return
        player.send(bytes(1200), reliable=True)
    raise AssertionError("5000 reliable messages may wait")


async def test_a_client_that_acknowledges_nothing_is_lost_when_it_is_silent_and_slow_when_it_is_not(
    server: GameServer, game: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is lost keeps its seat and comes back to it; one that is slow has left and cannot."""
    monkeypatch.setattr(udp, "LOST_AFTER", 0.0)
    async with by_udp_framed(token_for(server, "s1", client_id=1, resume_ttl=60, timeout=30)):
        ((_, lost),) = await game.saw("join")
        overwhelm(lost)
        assert await game.saw("drop") == [("drop", lost)]
        assert (lost.connected, lost.dropped) == (False, True)
    again = token_for(server, "s1", client_id=1, resume_ttl=60, generation=1, timeout=30)
    monkeypatch.setattr(udp, "LOST_AFTER", 1000.0)
    async with by_udp_framed(again) as back:
        assert await game.saw("resume") == [("resume", lost)]
        await _plays(back, game)
        overwhelm(lost)
        assert await game.saw("leave") == [("leave", lost, LeaveReason.TOO_SLOW)]
        close = encode_close(CloseCode.TOO_SLOW, "too many reliable messages have not arrived")
        await eventually(lambda: close in back.frames, "it hears why", 20)
    assert not lost.dropped
    assert len(server.players) == 0


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "never heard"])
async def test_last_words_hold_up_the_end_of_a_server_no_longer_than_their_own_time(
    game: Recorder, monkeypatch: pytest.MonkeyPatch, heard: bool
) -> None:
    """A player who was kicked keeps its slot until it has heard them or their time is over. Nothing waits for it then,
    though no datagram comes any more."""
    monkeypatch.setattr(udp, "LINGER", 600.0 if heard else 0.05)
    async with (
        asyncio.timeout(60),
        AsyncExitStack() as clients,
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
    ):
        client = await clients.enter_async_context(by_udp_framed(token_of(await ready(server))))
        ((_, player),) = await game.saw("join")
        player.send(b"last words", reliable=True)
        player.kick("over")
        await eventually(lambda: client.frames, "the last words have come", 20)
        if heard:
            acks(client)
        close = encode_close(CloseCode.KICKED, "over")
        await eventually(lambda: close in client.frames, "the close has come", 20)
        monkeypatch.setattr(udp, "LINGER", 600.0)


def acks(client: FramedUdp) -> None:
    """Acknowledge all that has come."""
    channel, now = MessageChannel(), asyncio.get_running_loop().time()
    for frame in client.frames:
        channel.receive(frame, now)
    while channel.next_message(now) is not None:
        pass
    for frame in channel.frames(now):
        client.send(frame)
