"""Reliable and long messages, and why a connection ended: both SDKs on real sockets, by UDP also over a bad path."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import pytest
from websockets.asyncio.client import connect as open_websocket
from websockets.asyncio.server import ServerConnection

from tests.client_sdk.stubs import ask_upstream, scripted_matchmaker, with_transports
from tests.gameserver.players import by_udp, by_udp_framed, by_websocket, ready, token_of
from tests.polling import eventually
from tipoff_client_sdk import (
    MAX_MESSAGE,
    Closed,
    Ended,
    Message,
    Player,
    ServerLost,
    Transport,
    connect,
    connect_threaded,
)
from tipoff_gameserver import Game, GameServer, LeaveReason, PrivateKey
from tipoff_gameserver import Player as ServerPlayer
from tipoff_shared.errors import MessageTooLarge, TooLarge
from tipoff_shared.framing import encode_close
from tipoff_shared.messages import Admitted
from tipoff_shared.netcode import ClientState, Dialect
from tipoff_shared.netcode.constants import FRAME

pytestmark = pytest.mark.row(92)

WAYS: list[Transport] = ["udp", "websocket"]
TIMEOUT = 30.0


class Reliable(Game):
    """Sends every message back reliably, and remembers who came, went, and what was said."""

    def __init__(self) -> None:
        self.joined: asyncio.Queue[ServerPlayer] = asyncio.Queue(64)
        self.left: asyncio.Queue[LeaveReason] = asyncio.Queue(64)
        self.seen: list[bytes] = []
        self.ticks_failed = 0

    def on_join(self, player: ServerPlayer) -> None:
        self.joined.put_nowait(player)

    def on_message(self, player: ServerPlayer, data: bytes) -> None:
        self.seen.append(data)
        player.send(data, reliable=True)

    def on_leave(self, player: ServerPlayer, reason: LeaveReason) -> None:
        self.left.put_nowait(reason)


@pytest.fixture
async def game() -> Reliable:
    return Reliable()


@pytest.fixture
async def server(game: Reliable) -> AsyncIterator[GameServer]:
    async with GameServer(game, stand_alone=True, listen="127.0.0.1:0", message_limit=100_000) as server:
        yield server


@asynccontextmanager
async def playing(server: GameServer, way: Transport, **options: Any) -> AsyncIterator[Player]:
    async with (
        asyncio.timeout(TIMEOUT),
        connect(server.url, game="any", version="1", transports=[way], **options) as player,
    ):
        yield player


async def received(player: Player, count: int) -> list[bytes]:
    async with asyncio.timeout(TIMEOUT):
        return [await player.receive() for _ in range(count)]


def patterned(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [1, 1200, 1201, 20_000, MAX_MESSAGE])
async def test_a_message_of_any_size_goes_there_and_back(
    server: GameServer, way: Transport, size: int
) -> None:
    async with playing(server, way) as player:
        assert (player.max_message, player.reliable) == (65536, True)
        await player.send(patterned(size), reliable=True)
        assert await received(player, 1) == [patterned(size)]


@pytest.mark.parametrize("way", WAYS)
async def test_long_messages_need_not_be_reliable(server: GameServer, game: Reliable, way: Transport) -> None:
    """Some may get lost by UDP, so they are repeated until one has come."""
    async with playing(server, way) as player:
        there = await game.joined.get()

        async def heard() -> bool:
            await player.send(patterned(30_000))
            there.send(patterned(40_000, 2))
            return patterned(30_000) in game.seen and patterned(40_000, 2) in player.take_all()

        await eventually(heard, "both have come", TIMEOUT)


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_sent_on_join_arrives_first(way: Transport) -> None:
    """The client is not sure yet that it is connected."""

    class Welcoming(Reliable):
        def on_join(self, player: ServerPlayer) -> None:
            assert player.reliable
            for number in range(5):
                player.send(bytes([number]) * 3000, reliable=True)

    async with (
        GameServer(Welcoming(), stand_alone=True, listen="127.0.0.1:0") as server,
        playing(server, way) as player,
    ):
        assert await received(player, 5) == [bytes([number]) * 3000 for number in range(5)]


@pytest.mark.parametrize("way", WAYS)
async def test_last_words_arrive(server: GameServer, game: Reliable, way: Transport) -> None:
    """A client that sends and leaves at once has been heard."""
    async with playing(server, way) as player:
        for number in range(20):
            await player.send(bytes([number]) * 5000, reliable=True)
    assert await game.left.get() is LeaveReason.LEFT
    assert game.seen == [bytes([number]) * 5000 for number in range(20)]


# --- a bad path -------------------------------------------------------------------------------------------------------


class LossyRelay(asyncio.DatagramProtocol):
    """Passes datagrams between one client and the server; `loss` and `doubled` are shares of them, `delay` is seconds
    at most, so they overtake each other."""

    def __init__(self, server: tuple[str, int], seed: int, loss: float, doubled: float, delay: float) -> None:
        self._server = server
        self._random = random.Random(seed)
        self.loss, self._doubled, self._delay = loss, doubled, delay
        self._client: tuple[str, int] | None = None
        self.lost = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if addr != self._server:
            self._client = addr
        to = self._client if addr == self._server else self._server
        for _ in range(1 + (self._random.random() < self._doubled)):
            if self._random.random() < self.loss:
                self.lost += 1
            else:
                delay = self._random.random() * self._delay
                asyncio.get_running_loop().call_later(delay, self._pass_on, data, to)

    def _pass_on(self, data: bytes, to: tuple[str, int]) -> None:
        if not self.transport.is_closing():
            self.transport.sendto(data, to)


@asynccontextmanager
async def over_a_bad_path(
    server: GameServer, seed: int, *, loss: float = 0.15, doubled: float = 0.1, delay: float = 0.02
) -> AsyncIterator[tuple[Player, LossyRelay]]:
    assert server.transports.udp is not None
    there = ("127.0.0.1", server.transports.udp.port)
    transport, relay = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: LossyRelay(there, seed, loss, doubled, delay), local_addr=("127.0.0.1", 0)
    )
    port = transport.get_extra_info("sockname")[1]

    async def script(player: ServerConnection, request: str) -> None:
        for message in await ask_upstream(server.url, request):
            await player.send(with_transports(message, udp={"host": "127.0.0.1", "port": port}))

    try:
        async with (
            scripted_matchmaker(script) as url,
            asyncio.timeout(TIMEOUT),
            connect(url, game="any", version="1", transports=["udp"]) as player,
        ):
            yield player, relay
    finally:
        transport.close()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_over_a_bad_path_every_reliable_message_comes_once_and_in_order(
    server: GameServer, game: Reliable, seed: int
) -> None:
    """Loss, doubling, delay and reordering in both directions, on real sockets."""
    sizes = random.Random(seed)
    sent = [patterned(sizes.choice((3, 100, 1000, 5000)), number) for number in range(40)]
    sent[20] = patterned(30_000, 20)
    async with over_a_bad_path(server, seed) as (player, relay):

        async def send_all() -> None:
            for message in sent:
                await player.send(message, reliable=True)

        sending = asyncio.create_task(send_all())
        assert await received(player, len(sent)) == sent
        await sending
        assert game.seen == sent
        assert relay.lost > 5, f"seed {seed}"


@pytest.mark.parametrize("seed", range(4))
async def test_over_a_bad_path_the_reason_of_a_kick_arrives(
    server: GameServer, game: Reliable, seed: int
) -> None:
    """Ten close frames are sent: not all of them get lost."""
    async with over_a_bad_path(server, seed, delay=0) as (player, _):
        (await game.joined.get()).kick("spam")
        ending = await player.ended()
        assert (ending.code, ending.reason) == (4000, "spam"), f"seed {seed}"


async def test_what_never_arrives_is_told_to_the_client(
    server: GameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small packets pass, reliable ones do not: nobody waits for them for ever."""
    async with over_a_bad_path(server, 1, loss=0, delay=0) as (player, relay):
        await player.send(b"x", reliable=True)
        assert await received(player, 1) == [b"x"]
        monkeypatch.setattr("tipoff_shared.framing.channel.STALLED_AFTER", 0.5)
        relay.loss = 1.0
        await player.send(b"lost", reliable=True)
        with pytest.raises(ServerLost, match="do not arrive"):
            await player.receive()


# --- sizes and types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_too_large_is_told_where_it_is_sent_and_ends_nothing(
    server: GameServer, game: Reliable, way: Transport
) -> None:
    async with playing(server, way) as player:
        there = await game.joined.get()
        for send in (there.send, server.broadcast):
            with pytest.raises(MessageTooLarge, match="1 to 65536 bytes, not 65537") as told:
                send(bytes(65537), reliable=True)
            assert (told.value.size, told.value.limit) == (65537, 65536)
        with pytest.raises(TooLarge, match="1 to 65536 bytes, not 100000"):
            await player.send(bytes(100_000))
        await player.send(b"still here", reliable=True)
        assert await received(player, 1) == [b"still here"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", ["text", 5, None, [1]])
async def test_what_is_no_bytes_is_refused_with_a_sentence(
    server: GameServer, game: Reliable, way: Transport, wrong: Any
) -> None:
    async with playing(server, way) as player:
        there = await game.joined.get()
        sentence = f"a message is bytes, not {type(wrong).__name__}"
        for send in (there.send, server.broadcast):
            with pytest.raises(TypeError, match=sentence):
                send(wrong)
        with pytest.raises(TypeError, match=sentence):
            await player.send(wrong)
        for fine in (bytearray(b"fine"), memoryview(b"fine")):
            await player.send(cast(bytes, fine), reliable=True)
            there.send(cast(bytes, fine), reliable=True)
        assert await received(player, 4) == [b"fine"] * 4


@pytest.mark.parametrize("way", WAYS)
async def test_a_tick_that_always_sends_too_much_ends_no_match(way: Transport) -> None:
    """The growing state of a game is over the limit one day; who plays goes on playing."""

    class Growing(Reliable):
        def tick(self, server: GameServer, dt: float) -> None:
            self.ticks_failed += 1
            server.broadcast(bytes(100_000))

    game = Growing()
    async with (
        GameServer(
            game, stand_alone=True, listen="127.0.0.1:0", tick_rate=200, max_tick_failures=3
        ) as server,
        playing(server, way) as player,
    ):
        await eventually(lambda: game.ticks_failed > 20, "the tick has failed often", TIMEOUT)
        await player.send(b"still here", reliable=True)
        assert await received(player, 1) == [b"still here"]


async def test_one_who_takes_short_messages_only_holds_up_nobody(server: GameServer, game: Reliable) -> None:
    """A broadcast reaches all others before the error is raised."""
    async with (
        by_websocket(server, token_of(await ready(server))) as short,
        playing(server, "udp") as player,
    ):
        assert isinstance(short.answer, Admitted)
        there = {there.max_message: there for there in [await game.joined.get(), await game.joined.get()]}
        assert set(there) == {1200, 65536}
        with pytest.raises(MessageTooLarge) as told:
            server.broadcast(patterned(5000), reliable=True)
        assert told.value.limit == 1200
        assert await received(player, 1) == [patterned(5000)]
        server.broadcast(b"short", reliable=True)
        assert await short.receive() == b"short"


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_the_budgets_of_a_game_server_admit_long_messages(way: Transport) -> None:
    """As fast as the client can, over the message limit: they wait, and none is dropped."""
    game = Reliable()
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0", message_limit=200) as server,
        playing(server, way) as player,
    ):
        there = await game.joined.get()
        for number in range(8):
            await player.send(patterned(MAX_MESSAGE, number), reliable=True)
        assert await received(player, 8) == [patterned(MAX_MESSAGE, number) for number in range(8)]
        assert there.messages_dropped == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_slow_reader_loses_no_reliable_message(
    server: GameServer, game: Reliable, way: Transport
) -> None:
    """Far more come than the client's queue holds."""
    async with playing(server, way, receive_queue=4) as player:
        there = await game.joined.get()
        for number in range(500):
            there.send(number.to_bytes(2, "little"), reliable=True)
        await eventually(lambda: player.received >= 4, "the queue is full", TIMEOUT)
        assert await received(player, 500) == [number.to_bytes(2, "little") for number in range(500)]
        assert player.dropped == 0


async def test_a_client_that_acknowledges_nothing_is_sent_away(server: GameServer, game: Reliable) -> None:
    """At the bound, with a close that says so; nobody else notices."""
    token = token_of(await ready(server))
    async with by_udp_framed(token) as deaf, playing(server, "udp") as player:
        there = {await game.joined.get(), await game.joined.get()}
        slow = next(p for p in there if p.link.address.endswith(str(deaf.port)))
        for _ in range(20):
            slow.send(bytes(MAX_MESSAGE), reliable=True)
        assert not slow.connected
        assert await game.left.get() is LeaveReason.TOO_SLOW
        await eventually(
            lambda: encode_close(4001, "too many reliable messages have not arrived") in deaf.frames,
            "the close has come",
            TIMEOUT,
        )
        await player.send(b"fine", reliable=True)
        assert await received(player, 1) == [b"fine"]


@pytest.mark.slow
async def test_a_websocket_that_is_not_read_is_closed_at_the_bound(
    server: GameServer, game: Reliable
) -> None:
    assert server.transports.websocket is not None
    url = f"{server.transports.websocket.url}?max_message=65536"
    async with open_websocket(url, max_size=1 << 20, max_queue=1) as ws:
        await ws.send(token_of(await ready(server)))
        there = await game.joined.get()
        ws.transport.pause_reading()
        for _ in range(200):
            there.send(bytes(MAX_MESSAGE), reliable=True)
        async with asyncio.timeout(TIMEOUT):
            assert await game.left.get() is LeaveReason.TOO_SLOW
        ws.transport.abort()


@pytest.mark.parametrize("frame", [b"\x02\0", bytes.fromhex("01ffffffff") + bytes(16), b"\x03" * 8])
async def test_who_sends_what_is_no_frame_is_sent_away(
    server: GameServer, game: Reliable, frame: bytes
) -> None:
    async with by_udp_framed(token_of(await ready(server))) as player:
        await game.joined.get()
        player.send(frame)
        assert await game.left.get() is LeaveReason.MISBEHAVED
        await eventually(lambda: player.frames, "the close has come", TIMEOUT)
        assert player.frames[0][:3] == b"\x04\xf0\x03"  # 1008


# --- why it ended -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_a_kick_says_why(server: GameServer, game: Reliable, way: Transport) -> None:
    async with playing(server, way) as player:
        (await game.joined.get()).kick("you were rude")
        with pytest.raises(Closed, match="you were rude") as closed:
            await player.receive()
        assert (closed.value.close_code, closed.value.reason) == (4000, "you were rude")
        with pytest.raises(Closed, match="you were rude") as closed:
            await player.send(b"x")
        assert (closed.value.close_code, closed.value.reason) == (4000, "you were rude")
        assert (player.end_code, player.end_reason) == (4000, "you were rude")


@pytest.mark.parametrize("way", WAYS)
async def test_what_was_sent_before_a_kick_is_read_before_its_reason(
    server: GameServer, game: Reliable, way: Transport
) -> None:
    async with playing(server, way) as player:
        there = await game.joined.get()
        there.send(b"you have lost", reliable=True)
        there.kick("game over")
        assert await received(player, 1) == [b"you have lost"]
        assert [message async for message in player] == []
        assert player.end_reason == "game over"


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("end", ["kick", "end"])
async def test_over_a_bad_path_the_last_words_arrive_before_the_close(
    server: GameServer, game: Reliable, monkeypatch: pytest.MonkeyPatch, seed: int, end: str
) -> None:
    """A client keeps its slot for a moment, until it has heard them. A server that ends waits as well."""
    monkeypatch.setattr("tipoff_gameserver.transports.udp.LINGER", 20.0)
    async with over_a_bad_path(server, seed, loss=0.15, delay=0) as (player, _):
        there = await game.joined.get()
        for number in range(5):
            there.send(bytes([number]) * 3000, reliable=True)
        if end == "kick":
            there.kick("over")
        else:
            server.shutdown("over")
            await server.__aexit__(None, None, None)
        assert not there.connected
        assert await received(player, 5) == [bytes([number]) * 3000 for number in range(5)]
        ending = await player.ended()
        assert ending.code == (4000 if end == "kick" else 1001), f"seed {seed}"


@pytest.mark.parametrize("again", ["1234567890abcdefghijkl", "another0player56789012"])
async def test_one_who_lingers_keeps_nobody_out(game: Reliable, again: str) -> None:
    """Neither the next player nor itself, though it acknowledges nothing."""
    request = '{"game": "g", "version": "1", "request_id": "1234567890abcdefghijkl"}'
    async with (
        GameServer(game, stand_alone=True, listen="127.0.0.1:0", capacity=1) as server,
        by_udp_framed(token_of(await ready(server, request))),
    ):
        deaf = await game.joined.get()
        deaf.send(b"unheard", reliable=True)
        deaf.kick("next, please")
        async with playing(server, "udp", request_id=again):
            there = await game.joined.get()
            assert (there.client_id == deaf.client_id) == again.startswith("1")


@pytest.mark.parametrize("way", WAYS)
async def test_the_end_of_a_server_says_so(way: Transport) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            GameServer(Reliable(), stand_alone=True, listen="127.0.0.1:0")
        )
        async with playing(server, way) as player:
            closing = asyncio.create_task(stack.aclose())
            with pytest.raises(Closed) as closed:
                await player.receive()
            assert (closed.value.close_code, closed.value.reason) == (1001, "the server ends")
            await closing


@pytest.mark.parametrize("way", WAYS)
async def test_a_frame_loop_is_told_why_too(server: GameServer, game: Reliable, way: Transport) -> None:
    with connect_threaded(server.url, game="any", version="1", transports=[way]) as player:
        there = await game.joined.get()
        events: list[Any] = []

        async def seen(kind: type) -> bool:
            events.extend(player.poll())
            return any(isinstance(event, kind) for event in events)

        await eventually(lambda: player.connected, "connected", TIMEOUT)
        assert player.send(patterned(50_000), reliable=True)
        await eventually(lambda: seen(Message), "the answer has come", TIMEOUT)
        assert Message(patterned(50_000)) in events
        there.kick("enough")
        await eventually(lambda: seen(Ended), "the end has come", TIMEOUT)
        assert Ended("enough", None, 4000) in events


# --- who knows no framing ---------------------------------------------------------------------------------------------


async def test_a_plain_netcode_client_sees_the_standard_only(server: GameServer, game: Reliable) -> None:
    """It gets reliable messages as ordinary ones, and no packet that the standard does not know."""
    async with by_udp(token_of(await ready(server))) as plain:
        there = await game.joined.get()
        assert (there.reliable, there.max_message) == (False, 1200)
        there.send(b"as ever", reliable=True)
        assert await plain.receive() == b"as ever"
        with pytest.raises(MessageTooLarge, match="1 to 1200 bytes"):
            there.send(bytes(1201))
        there.kick("unheard")
        await plain.reaches(ClientState.DISCONNECTED)


@pytest.mark.parametrize("way", WAYS)
async def test_a_game_may_stay_with_plain_messages(way: Transport) -> None:
    """`framing=False`: as every server of an earlier release."""
    async with (
        GameServer(Reliable(), stand_alone=True, listen="127.0.0.1:0", framing=False) as server,
        playing(server, way) as player,
    ):
        assert player.max_message == 1200
        assert player.reliable == (way == "websocket")
        await player.send(b"as ever", reliable=True)
        assert await received(player, 1) == [b"as ever"]
        with pytest.raises(MessageTooLarge, match="1 to 1200 bytes"):
            await player.send(bytes(1201))


async def test_lightyears_dialect_has_no_frames() -> None:
    async with (
        GameServer(
            Reliable(),
            stand_alone=True,
            listen="127.0.0.1:0",
            dialect=Dialect.LIGHTYEAR,
            private_key=PrivateKey.generate(),
        ) as server,
        playing(server, "udp", dialect="lightyear") as player,
    ):
        assert (player.max_message, player.reliable) == (1200, False)
        await player.send(b"as ever", reliable=True)
        assert await received(player, 1) == [b"as ever"]


async def test_without_reliable_messages_no_frame_is_sent(
    server: GameServer, game: Reliable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain path costs what it did: the same packets, of the same size."""
    async with by_udp_framed(token_of(await ready(server))) as player:
        there = await game.joined.get()
        kinds: list[int] = []
        take = player.datagram_received

        def watched(data: bytes, addr: object) -> None:
            kinds.append(data[0] & 0x0F)
            take(data, addr)

        player.datagram_received = watched  # type: ignore[method-assign]  # looked at, not changed
        for _ in range(20):
            there.send(bytes(1200))
        await eventually(lambda: len(kinds) >= 20, "they have come", TIMEOUT)
        assert FRAME not in kinds
