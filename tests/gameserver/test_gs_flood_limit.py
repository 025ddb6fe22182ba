"""A player who sends far too much is disconnected before the others notice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.gameserver.players import Recorder, by_udp, by_websocket, ready, token_for, token_of
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, LeaveReason, Player
from tipoff_gameserver.server import Game
from tipoff_gameserver.transports.websocket import CountedConnection
from tipoff_shared.netcode import ClientState
from tipoff_shared.netcode.constants import KEEP_ALIVE, PAYLOAD

pytestmark = pytest.mark.row(73)

FRAMES = 40_000


def raw(opcode: Opcode, data: bytes = b"x", *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=True)


FLOODS = {
    "messages": raw(Opcode.BINARY) * FRAMES,
    "pings": raw(Opcode.PING) * FRAMES,
    "pongs": raw(Opcode.PONG) * FRAMES,
    "fragments": raw(Opcode.BINARY, fin=False) + raw(Opcode.CONT, b"", fin=False) * FRAMES,
    "the longest messages": raw(Opcode.BINARY, bytes(1200)) * 8_000,
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
async def test_a_flood_by_websocket_ends_with_1008(game: Recorder, flood: bytes) -> None:
    """Whatever the frames are; the game has seen no more of them than the limits allow."""
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
        by_websocket(server, token_of(await ready(server))) as player,
    ):
        await game.saw("join")
        player.ws.transport.write(flood)
        with pytest.raises(ConnectionClosed) as closed:
            await drained(player.ws)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "far too many messages a second")
        ((_, _, reason),) = await game.saw("leave")
        assert reason == LeaveReason.MISBEHAVED
        assert len([event for event in game.happened if event[0] == "message"]) <= 2 * 500


async def drained(ws: ClientConnection) -> None:
    async with asyncio.timeout(5):
        while True:
            await ws.recv()


async def test_a_flood_before_the_token_is_cut_off_too(game: Recorder) -> None:
    """A stranger's frames are counted like a player's."""
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
        by_websocket(server, b"no token") as stranger,
    ):
        stranger.ws.transport.write(FLOODS["pings"])
        with pytest.raises(ConnectionClosed):
            await drained(stranger.ws)


async def test_no_more_of_a_flood_is_parsed_than_the_limit(
    game: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing one chunk of the socket, 37,000 frames, would keep the game from ticking for 100 ms and more."""
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
        by_websocket(server, token_of(await ready(server))) as player,
    ):
        parsed = 0
        process = CountedConnection.process_event

        def counted(connection: CountedConnection, event: Any) -> None:
            nonlocal parsed
            parsed += 1
            process(connection, event)

        monkeypatch.setattr(CountedConnection, "process_event", counted)  # the player's is the only one
        player.ws.transport.write(FLOODS["messages"])
        with pytest.raises(ConnectionClosed):
            await drained(player.ws)
        assert 2_000 < parsed <= 2_000 + 341  # the limit, and the piece in which it was passed


async def test_the_most_that_a_player_may_send_is_no_flood(game: Recorder) -> None:
    """Three seconds' worth of the longest messages at once, as after a pause of the network."""
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0", message_limit=500) as server,
        by_websocket(server, token_of(await ready(server))) as player,
    ):
        ((_, seen),) = await game.saw("join")
        assert isinstance(seen, Player)
        for _ in range(1500):
            await player.send(bytes(1200))
        await eventually(
            lambda: len(game.happened) - 1 + seen.messages_dropped == 1500, "all are received or dropped"
        )
        assert seen.connected


@pytest.mark.parametrize("kind", [PAYLOAD, KEEP_ALIVE])
async def test_a_flood_by_udp_is_disconnected(deployment: Context, game: Recorder, kind: int) -> None:
    """Payloads, and keep-alives, each of which costs an answer."""
    async with GameServer(game, context=deployment) as server, by_udp(token_for(server)) as player:
        await game.saw("join")

        async def sent_away() -> bool:
            """Within one second, that is: a slow machine needs another try."""
            player.flood(kind, b"x" * 8, 2_500)
            return any(event[0] == "leave" for event in game.happened)

        await eventually(sent_away, "the player is sent away")
        ((_, _, reason),) = await game.saw("leave")
        assert reason == LeaveReason.MISBEHAVED
        await eventually(lambda: player.state is not ClientState.CONNECTED, "the client is told")


async def test_too_much_by_udp_is_dropped_and_no_more(deployment: Context, game: Recorder) -> None:
    """Between the two limits a player stays."""
    async with (
        GameServer(game, context=deployment, message_limit=5) as server,
        by_udp(token_for(server)) as player,
    ):
        for _ in range(100):
            player.send(b"x")
        ((_, seen),) = await game.saw("join")
        assert isinstance(seen, Player)
        await eventually(lambda: seen.messages_dropped >= 90, "messages are dropped")
        assert seen.connected


@pytest.mark.parametrize("limits", [{"message_limit": 0}, {"message_limit": 10, "flood_limit": 9}])
def test_limits_that_cannot_work_are_told_at_once(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="flood_limit"):
        GameServer(Game(), **limits)  # type: ignore[arg-type]  # a dictionary of numbers


def test_a_flood_is_far_above_the_message_limit() -> None:
    assert GameServer(Game(), message_limit=5).flood_limit == 2000
    assert GameServer(Game(), message_limit=5000).flood_limit == 20_000
    assert GameServer(Game(), message_limit=5, flood_limit=6).flood_limit == 6
