"""WebSocket clients that misbehave: each is answered or closed in time, and harms nobody."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import ip_network
from typing import cast

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.protocol import State

from tests.gameserver.players import (
    Recorder,
    by_udp,
    by_udp_framed,
    by_websocket,
    ready,
    token_for,
    token_of,
)
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer, LeaveReason, Player
from tipoff_gameserver.transports import websocket
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import GameserverLease


def url_of(server: GameServer) -> str:
    assert server.transports.websocket is not None
    return server.transports.websocket.url


async def test_silence_instead_of_a_token_is_closed(
    alone: GameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "TOKEN_TIMEOUT", 0.1)
    async with connect(url_of(alone)) as ws:
        assert json.loads(await ws.recv())["Refused"][0] == 408
        await ws.wait_closed()
        assert ws.close_code == 1008


async def test_silence_instead_of_a_handshake_is_closed(
    game: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "TOKEN_TIMEOUT", 0.1)
    async with GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server:
        port = int(url_of(server).rsplit(":", 1)[1].strip("/"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost:")
        async with asyncio.timeout(5):
            await reader.read()
        writer.close()


async def test_silence_instead_of_a_request_to_play_is_closed(
    alone: GameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket, "REQUEST_TIMEOUT", 0.1)
    async with connect(alone.url) as ws:
        assert json.loads(await ws.recv())["Error"][0] == 400
        await ws.wait_closed()
        assert ws.close_code == 1008


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@pytest.mark.parametrize("said", [b"", HANDSHAKE[:20], HANDSHAKE], ids=["nothing", "a part", "a handshake"])
async def test_who_has_shown_no_token_holds_up_no_end(
    game: Recorder, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """A server that ends waits for the goodbye of its players only."""
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 600)
    async with asyncio.timeout(60):
        async with GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server:
            port = int(url_of(server).rsplit(":", 1)[1].strip("/"))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            if said == HANDSHAKE:
                await reader.readuntil(b"\r\n\r\n")
            async with connect(url_of(server)):
                pass  # it has been accepted, so the one before has, too
        goodbye = await reader.read()
        assert goodbye == (b"\x88\x11\x03\xe9the server ends" if said == HANDSHAKE else b"")
    writer.close()


@pytest.mark.parametrize("first", ["text", b"", b"short", bytes(2048), bytes(2049)])
async def test_something_else_instead_of_a_token_is_refused(alone: GameServer, first: str | bytes) -> None:
    async with connect(url_of(alone)) as ws:
        await ws.send(first)
        code, reason = json.loads(await ws.recv())["Refused"]
        assert code in (400, 403)
        assert reason
        await ws.wait_closed()
        assert ws.close_code == 1008


async def test_a_message_over_four_kilobytes_is_closed(alone: GameServer) -> None:
    async with connect(url_of(alone)) as ws:
        await ws.send(bytes(5000))
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize("message", ["text", b"", bytes(1201)])
async def test_a_player_who_breaks_the_protocol_is_closed(
    alone: GameServer, game: Recorder, message: str | bytes
) -> None:
    async with by_websocket(alone, token_of(await ready(alone))) as player:
        await player.ws.send(message)
        await player.ws.wait_closed()
        assert player.ws.close_code == 1008
    (leave,) = await game.saw("leave")
    assert leave[2] == LeaveReason.MISBEHAVED


async def test_a_player_who_reads_stays(alone: GameServer) -> None:
    async with by_websocket(alone, token_of(await ready(alone))) as player:
        await asyncio.sleep(1.2)  # once a second the server looks for those who do not read
        async with asyncio.timeout(20):
            await (await player.ws.ping())
        assert len(alone.players) == 1


async def test_compression_is_not_negotiated(alone: GameServer) -> None:
    async with connect(url_of(alone), compression="deflate") as ws:
        assert ws.protocol.extensions == []


async def test_a_connection_that_just_breaks_is_a_player_who_left(alone: GameServer, game: Recorder) -> None:
    async with by_websocket(alone, token_of(await ready(alone))) as player:
        await game.saw("join")
        player.ws.transport.abort()
        (leave,) = await game.saw("leave")
    assert leave[2] == LeaveReason.LEFT


async def test_a_client_that_stops_reading_is_closed_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory stays bounded (what does not fit is dropped), ticks go on, and after a while the client is cut off."""
    monkeypatch.setattr(websocket, "STALLED_AFTER", 0.5)

    class Game(Recorder):
        def tick(self, server: GameServer, dt: float) -> None:
            for _ in range(20):
                server.broadcast(bytes(1200))

    game = Game()
    async with GameServer(game, stand_alone=True, listen="127.0.0.1:0", tick_rate=200, capacity=4) as server:
        token = token_of(await ready(server))
        async with by_udp(token_of(await ready(server))) as other:
            sock = socket.create_connection(("127.0.0.1", int(url_of(server).rsplit(":", 1)[1].strip("/"))))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            ws = await connect(url_of(server), sock=sock, max_queue=1)
            await ws.send(token)
            await game.saw("join", 2)
            slow = next(event[1] for event in game.happened if event[1].transport == "websocket")
            ws.transport.pause_reading()
            began, ticks = time.monotonic(), server.ticks
            (leave,) = await game.saw("leave", 1, timeout=30)
            took = time.monotonic() - began
            assert leave[1:] == (slow, LeaveReason.TOO_SLOW)
            assert took < 10
            assert server.ticks - ticks > 0.2 * took * 200  # held up, it would be next to none
            assert slow.link.dropped > 0
            assert (await other.receive()) == bytes(1200)
            ws.transport.abort()
            await ws.wait_closed()


class Unsent:
    """A connection of which only the write buffer is looked at."""

    def __init__(self) -> None:
        self.bytes = 0
        self.transport = self
        self.protocol = self
        self.state = State.CLOSED  # what is sent goes nowhere

    def get_write_buffer_size(self) -> int:
        return self.bytes


@pytest.mark.parametrize("waiting", [1, 100])
async def test_a_client_that_reads_nothing_for_so_long_is_stalled(waiting: int) -> None:
    """Not one that reads a little, nor one for which nothing waits."""
    unsent = Unsent()
    link = websocket.WebSocketLink(cast(ServerConnection, unsent), Tasks("test"), "")
    assert not link.is_stalled(0)
    for began in (100.0, 200.0):
        unsent.bytes = waiting
        assert not link.is_stalled(began)
        assert not link.is_stalled(began + websocket.STALLED_AFTER - 0.1)
        assert link.is_stalled(began + websocket.STALLED_AFTER)
        unsent.bytes = 0
        assert not link.is_stalled(began + websocket.STALLED_AFTER + 1)
    unsent.bytes = 1000
    for second in range(300, 400, 10):
        unsent.bytes -= 10
        assert not link.is_stalled(second)
    assert not link.is_stalled(390 + 10)
    assert link.is_stalled(400 + websocket.STALLED_AFTER)


async def test_a_client_that_reads_as_fast_as_it_is_sent_to_is_not_stalled() -> None:
    """Though something waits for it all the time."""
    unsent = Unsent()
    link = websocket.WebSocketLink(cast(ServerConnection, unsent), Tasks("test"), "")
    unsent.bytes = 1000
    for second in range(100):
        link.send(bytes(10))
        assert not link.is_stalled(second)


async def test_a_dead_client_is_noticed_by_its_missing_pongs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent to it by the game, so only the pings can tell."""
    monkeypatch.setattr(websocket, "PING_INTERVAL", 0.1)
    monkeypatch.setattr(websocket, "PING_TIMEOUT", 0.2)
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 0.2)
    game = Recorder()
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
        by_websocket(server, token_of(await ready(server))) as player,
    ):
        await game.saw("join")
        player.ws.transport.pause_reading()
        (leave,) = await game.saw("leave")
        assert leave[2] == LeaveReason.TIMED_OUT
        player.ws.transport.abort()


async def test_the_round_trip_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_INTERVAL", 0.05)
    game = Recorder()
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
        by_websocket(server, token_of(await ready(server))),
    ):
        ((_, player),) = await game.saw("join")
        await eventually(lambda: player.rtt is not None, "a round trip was measured")
        assert 0 < player.rtt < 1


async def test_a_late_message_to_a_closing_client_is_harmless(alone: GameServer, game: Recorder) -> None:
    """The game sends while the closing handshake is under way."""
    async with by_websocket(alone, token_of(await ready(alone))) as player:
        ((_, seen),) = await game.saw("join")
        assert isinstance(seen, Player)
        await player.ws.close()
        seen.link.send(b"late")
        await game.saw("leave")


async def test_only_a_stand_alone_server_is_a_matchmaker(
    deployment: Context, game: Recorder, kv: Buckets
) -> None:
    async with GameServer(game, context=deployment) as server:
        for path in ("matchmaker/ws", "matchmaker/ws?x", "nothing"):
            with pytest.raises(InvalidStatus) as refused:
                await connect(url_of(server) + path)
            assert refused.value.response.status_code == 404


async def test_behind_a_proxy_the_game_is_at_the_path_players_dial(
    proxied: Context, game: Recorder, kv: Buckets
) -> None:
    """`/gs/ID` of its own id and the path of the announced URL; another deployment's path is not found."""
    async with GameServer(game, context=proxied):
        port = (await announced(kv)).websocket_port
        for path in ("/", "/gs/arena-1", "/some/where/arena-1"):
            async with connect(f"ws://127.0.0.1:{port}{path}") as ws:
                await ws.send(b"no token")
                assert json.loads(await ws.recv())["Refused"][0] == 403
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}/gs/arena-2")
        assert refused.value.response.status_code == 404


@pytest.mark.parametrize(
    ("told", "believed"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["10.9.9.9, 203.0.113.9"], "203.0.113.9"),
        (["10.9.9.9", "203.0.113.9"], "203.0.113.9"),
        (["2001:db8::1"], "2001:db8::1"),
        (["rubbish"], "127.0.0.1:"),
        ([], "127.0.0.1:"),
    ],
)
async def test_behind_a_proxy_a_player_has_the_address_that_the_proxy_tells(
    proxied: Context, game: Recorder, kv: Buckets, told: list[str], believed: str
) -> None:
    """The last entry of X-Forwarded-For, where it is an address."""
    async with GameServer(game, context=proxied) as server:
        port = (await announced(kv)).websocket_port
        address = await address_of_player(game, f"ws://127.0.0.1:{port}/", token_for(server), told)
        assert address.startswith(believed)


async def test_without_a_proxy_nobody_is_believed_to_speak_for_others(
    alone: GameServer, game: Recorder
) -> None:
    """X-Forwarded-For is a client's own text where no proxy is configured."""
    token = token_of(await ready(alone))
    address = await address_of_player(game, url_of(alone), token, ["203.0.113.9"])
    assert address.startswith("127.0.0.1:")


async def address_of_player(game: Recorder, url: str, token: bytes, forwarded_for: list[str]) -> str:
    """The address under which the game knows a player who connects with these headers."""
    headers = [("X-Forwarded-For", value) for value in forwarded_for]
    async with connect(url, additional_headers=headers) as ws:
        await ws.send(token)
        ((_, player),) = await game.saw("join")
        assert isinstance(player, Player)
        return player.address


async def announced(kv: Buckets) -> GameserverLease:
    """What the server says about itself."""
    entry = await eventually(lambda: kv.gameservers.get("arena-1"), "the lease")
    assert entry is not None
    return entry.value


@pytest.fixture
def proxied(deployment: Context) -> Context:
    """As a launcher starts a server behind a proxy."""
    return replace(
        deployment,
        websocket_url="wss://play.example.org/some/where/arena-1",
        trusted_proxies=(ip_network("127.0.0.0/8"),),
    )


async def test_reliable_messages_that_are_not_read_wait_up_to_a_bound(
    game: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond it the client is disconnected, with a close that says so after all that was kept. The game sends all of it
    in one turn of the event loop, so it is the bound that ends it, not the time."""
    monkeypatch.setattr(websocket, "CLOSE_TIMEOUT", 60.0)
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0") as server,
        by_websocket(server, token_of(await ready(server))) as client,
    ):
        ((_, player),) = await game.saw("join")
        sent = 0
        while sent < 20_000 and not player.link.dropped:  # 24 MB; the kernel takes some before any wait here
            player.send(sent.to_bytes(2, "little") + bytes(1198), reliable=True)
            sent += 1
        assert player.link.dropped == 1
        for _ in range(10):
            player.send(b"too late", reliable=True)
        numbers: list[int] = []

        async def read() -> None:
            while True:
                numbers.append(int.from_bytes((await client.receive())[:2], "little"))

        with pytest.raises(ConnectionClosed) as closed:
            await read()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4001
        assert "reliable messages" in closed.value.rcvd.reason
        assert numbers == list(range(sent - 1))
        assert await game.saw("leave") == [("leave", player, LeaveReason.TOO_SLOW)]


@pytest.mark.parametrize(
    ("way", "message", "rule"),
    [
        ("websocket", "text", "messages are binary and have 1 to 1200 bytes"),
        ("websocket", bytes(1201), "messages are binary and have 1 to 1200 bytes"),
        ("udp", b"\x02\0", "a frame"),
        ("udp", bytes.fromhex("01ffffffff") + bytes(16), "an ack for what was never sent"),
    ],
)
async def test_the_matchmaker_is_told_which_rule_a_player_broke(
    deployment: Context, game: Recorder, kv: Buckets, way: str, message: str | bytes, rule: str
) -> None:
    """In what is left of the session's key."""
    async with GameServer(game, context=deployment) as server, AsyncExitStack() as stack:
        token = token_for(server, "s1", timeout=30)
        if way == "websocket":
            player = await stack.enter_async_context(by_websocket(server, token))
            await player.ws.send(message)
        else:
            framed = await stack.enter_async_context(by_udp_framed(token))
            await game.saw("join")
            assert isinstance(message, bytes)
            framed.send(message)
        ((_, _, reason),) = await game.saw("leave")
        assert reason is LeaveReason.MISBEHAVED

        async def told() -> str:
            latest = await kv.active_connections.latest("s1")
            return "" if latest is None or latest.value is not None else latest.why

        assert (await eventually(told, "the key is deleted with a reason")).startswith(f"misbehaved: {rule}")
