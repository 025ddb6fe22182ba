"""Playing on a real game server: both transports, the fallback, every way in which a game ends."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection

from tests.arena_servers import arena_process
from tests.client_sdk.stubs import (
    Echo,
    ask_upstream,
    scripted_matchmaker,
    with_transports,
)
from tests.polling import eventually
from tipoff.interop.echo_commands import serve_echo
from tipoff_client_sdk import (
    Closed,
    ConnectionFailed,
    Player,
    Progress,
    Refused,
    ServerLost,
    Transport,
    connect,
)
from tipoff_client_sdk.inbox import Inbox
from tipoff_client_sdk.transports import udp
from tipoff_client_sdk.transports.udp import dial_udp
from tipoff_gameserver import GameServer, LeaveReason
from tipoff_shared.errors import Malformed, TipoffError, TooLarge, Unavailable
from tipoff_shared.messages import SessionReady, encode_feedback
from tipoff_shared.netcode import Address, ConnectToken, PrivateKey, Server, issue_token

WAYS: list[Transport] = ["udp", "websocket"]


def game_of(server: GameServer) -> Echo:
    assert isinstance(server.game, Echo)
    return server.game


async def read_all(player: Player) -> list[bytes]:
    return [message async for message in player]


@asynccontextmanager
async def killable() -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A gameserver that can be killed, and its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    async with arena_process(listen) as process:
        yield f"http://{listen}", process


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_sent_comes_back(echo: GameServer, way: Transport) -> None:
    """The whole way: request, token, transport, game."""
    async with connect(echo.url, game="any", version="1", transports=[way]) as player:
        await player.send(b"hello")
        assert await player.receive() == b"hello"
        assert player.transport == way
        assert player.session_id == (await game_of(echo).joined.get()).session_id
        assert player.deployment_id == "stand-alone"
        assert player.rtt is not None
        assert 0 < player.rtt < 1


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_frees_the_seat_at_once(echo: GameServer, way: Transport) -> None:
    """The server hears a goodbye, not a timeout."""
    async with connect(echo.url, game="any", version="1", transports=[way]):
        pass
    async with asyncio.timeout(2):
        assert await game_of(echo).left.get() is LeaveReason.LEFT


@pytest.mark.parametrize("way", WAYS)
async def test_leaving_works_while_being_cancelled(echo: GameServer, way: Transport) -> None:
    """A cancelled game says goodbye too."""

    async def play() -> None:
        async with connect(echo.url, game="any", version="1", transports=[way]) as player:
            await player.receive()

    task = asyncio.create_task(play())
    await game_of(echo).joined.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(2):
        assert await game_of(echo).left.get() is LeaveReason.LEFT


@pytest.mark.parametrize("way", WAYS)
async def test_the_end_of_the_match_ends_the_iteration(echo: GameServer, way: Transport) -> None:
    """Quietly, and what is sent afterwards is `Closed`."""
    async with connect(echo.url, game="any", version="1", transports=[way]) as player:
        (await game_of(echo).joined.get()).kick("enough")
        async with asyncio.timeout(5):
            assert await read_all(player) == []
        assert not player.connected
        assert player.end_reason
        with pytest.raises(Closed):
            await player.send(b"too late")
        with pytest.raises(Closed):
            await player.receive()


@pytest.mark.parametrize("way", WAYS)
async def test_a_killed_server_is_lost(way: Transport) -> None:
    """Found out within seconds on both transports, not after the 15 s of netcode's timeout."""
    async with (
        killable() as (url, process),
        connect(url, game="arena", version="1", transports=[way]) as player,
    ):
        await player.receive()
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(5):
            with pytest.raises(ServerLost):
                await read_all(player)
        with pytest.raises(ServerLost):
            await player.send(b"anybody?")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.slow
async def test_a_game_may_run_on_uvloop(way: Transport) -> None:
    """Its timers and transports differ in small ways; what is played and how a loss is noticed do not."""
    uvloop = pytest.importorskip("uvloop")

    async def play(url: str, pid: int) -> None:
        async with connect(url, game="arena", version="1", transports=[way]) as player:
            for _ in range(20):
                await player.send(b"\x02" + bytes(5))
                await player.receive()
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(6):
                with pytest.raises(ServerLost):
                    await read_all(player)

    async with killable() as (url, process):
        await asyncio.to_thread(uvloop.run, play(url, process.pid))


@pytest.mark.parametrize("way", WAYS)
async def test_messages_of_a_wrong_size_are_refused_here(echo: GameServer, way: Transport) -> None:
    """Before anything is sent, and the connection lives on."""
    async with connect(echo.url, game="any", version="1", transports=[way]) as player:
        with pytest.raises(TooLarge):
            await player.send(bytes(65537))
        with pytest.raises(Malformed):
            await player.send(b"")
        await player.send(bytes(1200))
        assert await player.receive() == bytes(1200)


async def test_over_udp_the_oldest_message_is_dropped_when_nobody_reads(echo: GameServer) -> None:
    """The newest matter; the memory is bounded."""
    async with connect(echo.url, game="any", version="1", transports=["udp"], receive_queue=4) as player:
        for number in range(20):
            await player.send(bytes([number]))
        await eventually(lambda: player.received == 20)
        assert player.take_all() == [bytes([number]) for number in range(16, 20)]
        assert player.dropped == 16


async def test_over_websocket_nothing_is_dropped(echo: GameServer) -> None:
    """A slow reader makes the server wait."""
    async with connect(
        echo.url, game="any", version="1", transports=["websocket"], receive_queue=4
    ) as player:
        for number in range(200):
            await player.send(bytes([number]))
        async with asyncio.timeout(5):
            assert [await player.receive() for _ in range(200)] == [bytes([n]) for n in range(200)]
        assert player.dropped == 0


async def test_a_silent_udp_port_leads_to_the_websocket(echo: GameServer) -> None:
    """After the bound, with the same token: UDP never completed, so it is still good."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]

        async def script(player: ServerConnection, request: str) -> None:
            for message in await ask_upstream(echo.url, request):
                await player.send(with_transports(message, udp={"host": "127.0.0.1", "port": port}))

        told: list[Progress] = []
        async with (
            scripted_matchmaker(script) as url,
            connect(url, game="any", version="1", fall_back_after=0.3, progress=told.append) as player,
        ):
            assert player.transport == "websocket"
            await player.send(b"through")
            assert await player.receive() == b"through"
    assert [str(step) for step in told if "connecting" in str(step)] == [
        "connecting by udp",
        "connecting by websocket",
    ]


async def test_a_closed_udp_port_leads_to_the_websocket_without_the_wait(echo: GameServer) -> None:
    """The kernel reports that nothing listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def script(player: ServerConnection, request: str) -> None:
        for message in await ask_upstream(echo.url, request):
            await player.send(with_transports(message, udp={"host": "127.0.0.1", "port": port}))

    async with (
        scripted_matchmaker(script) as url,
        asyncio.timeout(5),
        connect(url, game="any", version="1", fall_back_after=30) as player,
    ):
        assert player.transport == "websocket"


async def test_a_transport_that_the_server_does_not_offer_is_an_error(echo: GameServer) -> None:
    async def script(player: ServerConnection, request: str) -> None:
        for message in await ask_upstream(echo.url, request):
            await player.send(with_transports(message, websocket=None))

    async with scripted_matchmaker(script) as url:
        with pytest.raises(ConnectionFailed, match="offers none of the transports"):
            async with connect(url, game="any", version="1", transports=["websocket"]):
                pass


async def test_a_token_is_good_for_one_connection(echo: GameServer) -> None:
    """The server's refusal comes as a type, with its number."""
    answers: list[str] = []

    async def script(player: ServerConnection, request: str) -> None:
        if not answers:
            answers.extend(await ask_upstream(echo.url, request))
        for message in answers:
            await player.send(message)

    async with scripted_matchmaker(script) as url:
        async with connect(url, game="any", version="1", transports=["websocket"]):
            pass
        with pytest.raises(Refused) as raised:
            async with connect(url, game="any", version="1", transports=["websocket"]):
                pass
    assert raised.value.server_code in (403, 409)


@asynccontextmanager
async def netcode_servers(capacities: Sequence[int], timeout: int = 5) -> AsyncIterator[ConnectToken]:
    """A bare netcode server for each of `capacities` (0: it is full), and a token that names them in this order."""
    key = PrivateKey.generate()
    stop = asyncio.Event()
    ports: list[Address] = []

    def server_at(bound: Address, capacity: int) -> Server:
        ports.append(bound)
        has_room = (lambda: True) if capacity else (lambda: False)
        return Server(
            private_key=key, protocol_id=7, addresses=[bound], max_clients=max(1, capacity), has_room=has_room
        )

    async with asyncio.TaskGroup() as group:
        for capacity in capacities:
            server_of = functools.partial(server_at, capacity=capacity)
            group.create_task(serve_echo(server_of, Address("127.0.0.1", 0), stop))
        await eventually(lambda: len(ports) == len(capacities), "all listen")
        try:
            yield issue_token(
                key, protocol_id=7, client_id=1, public_addresses=ports, now=time.time(), timeout=timeout
            )
        finally:
            stop.set()


@pytest.mark.parametrize("capacities", [(0, 1), (0, 0, 1), (1, 0)])
async def test_a_full_server_is_followed_by_the_tokens_next(capacities: Sequence[int]) -> None:
    async with netcode_servers(capacities) as token:
        inbox = Inbox(8)
        channel = await dial_udp(token, token.addresses, inbox, give_up=None, timeout=5)
        assert channel.server == str(token.addresses[capacities.index(1)])
        await channel.close()


async def test_a_player_whom_every_server_refuses_is_told_so() -> None:
    async with netcode_servers((0, 0)) as token:
        with pytest.raises(Refused) as raised:
            await dial_udp(token, token.addresses, Inbox(8), give_up=None, timeout=5)
    assert all(str(address) in str(raised.value) for address in token.addresses)
    assert str(raised.value).count("refused the connection: ") == 2, "with the reason, where there is one"


async def test_a_server_that_is_about_to_listen_is_waited_for() -> None:
    """The kernel says twice that nothing is there: that may be a restart. Three times, and it is believed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", free.getsockname()[1])
    key, stop = PrivateKey.generate(), asyncio.Event()
    token = issue_token(key, protocol_id=7, client_id=1, public_addresses=[address], now=time.time())
    with pytest.raises(ConnectionFailed, match="nothing listens there"):
        await dial_udp(token, token.addresses, Inbox(8), give_up=None, timeout=5)
    dialling = asyncio.ensure_future(dial_udp(token, token.addresses, Inbox(8), give_up=None, timeout=5))
    await asyncio.sleep(0.05)  # it has heard so once
    serving = asyncio.ensure_future(
        serve_echo(
            lambda bound: Server(private_key=key, protocol_id=7, addresses=[bound], max_clients=1),
            address,
            stop,
        )
    )
    channel = await dialling
    assert channel.server == str(address)
    await channel.close()
    stop.set()
    await serving


@pytest.mark.parametrize("refused_for", [0.05, 60.0])  # a keep-alive is answered every 0.1 s
async def test_a_connected_server_is_lost_when_the_kernel_says_so_for_long_enough(
    monkeypatch: pytest.MonkeyPatch, refused_for: float
) -> None:
    """Not by one burst, nor by errors that say nothing of the server."""
    monkeypatch.setattr(udp, "REFUSED_FOR", refused_for)
    async with netcode_servers([1]) as token:
        inbox = Inbox(8)
        channel = await dial_udp(token, token.addresses, inbox, give_up=None, timeout=5)
        for error in (ConnectionRefusedError(), OSError("no buffer space")):
            for _ in range(10):
                channel.error_received(error)
        assert inbox.ending is None
        await channel.send(b"x")
        assert await inbox.get() == b"x"  # it answers: what was heard before no longer counts
        await asyncio.sleep(0.06)  # the burst was so long ago
        for _ in range(3):
            channel.error_received(ConnectionRefusedError())
        assert inbox.ending is None
        for _ in range(20):
            channel.error_received(OSError("no buffer space"))
            await asyncio.sleep(0.005)  # the rhythm of the kernel's errors
        assert inbox.ending is None
        began = time.monotonic()
        while inbox.ending is None and time.monotonic() - began < 0.4:
            channel.error_received(ConnectionRefusedError())
            await asyncio.sleep(0.005)  # the rhythm of the kernel's errors
        assert (inbox.ending is not None) is (refused_for < 1)
        if inbox.ending is not None:
            assert isinstance(inbox.ending.error, ServerLost)
        await channel.close()


async def test_a_server_that_falls_silent_is_lost_after_the_tokens_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the game is told why."""
    inbox = Inbox(8)
    async with netcode_servers([1], timeout=1) as token:
        channel = await dial_udp(token, token.addresses, inbox, give_up=None, timeout=20)
        monkeypatch.setattr(channel, "datagram_received", lambda *_: None)  # nothing gets through any more
        async with asyncio.timeout(20):
            ending = await inbox.ended()
        assert ending.reason
        assert ending.reason == str(ending.error)
        assert isinstance(ending.error, ServerLost)
        await channel.close()


async def test_a_full_socket_drops_messages_and_holds_up_nobody() -> None:
    """As a network would, until there is room."""
    async with netcode_servers([1]) as token:
        inbox = Inbox(8)
        channel = await dial_udp(token, token.addresses, inbox, give_up=None, timeout=5)
        channel.pause_writing()
        await channel.send(b"lost")
        channel.resume_writing()
        await channel.send(b"goes out")
        assert await inbox.get() == b"goes out"
        await channel.close()
        await channel.close()
        with pytest.raises(Closed):
            await channel.send(b"too late")


@pytest.mark.parametrize(
    ("skew", "said"),
    [
        (16, "s behind the matchmaker's"),
        (-100, "s ahead of the matchmaker's"),
        (14, ""),
        (-10, ""),  # a slow machine adds to it
    ],
)
async def test_silence_by_udp_makes_the_clock_suspect_where_it_differs(skew: float, said: str) -> None:
    """Over half the token's lifetime of 30 s. The server's clock is this machine's: to it a token of 100 s ago has
    expired, and UDP's standard answers nothing to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", silent.getsockname()[1])
        token = issue_token(
            PrivateKey.generate(),
            protocol_id=7,
            client_id=1,
            public_addresses=[address],
            now=time.time() + skew,
        )

        async def script(player: ServerConnection, request: str) -> None:
            ready = SessionReady(token.to_base64(), str(address.ip), address.port)
            await player.send(encode_feedback(ready).decode())

        async with scripted_matchmaker(script) as url:
            with pytest.raises(TipoffError) as raised:
                async with connect(url, game="any", version="1", transports=["udp"], timeout=0.5):
                    pass
    assert ("Is this machine's clock right?" in str(raised.value)) is bool(said)
    assert said in str(raised.value)


async def test_a_full_server_is_said_by_the_matchmaker() -> None:
    """A typed error, long before any transport is tried."""
    async with (
        GameServer(Echo(), stand_alone=True, listen="127.0.0.1:0", capacity=1) as server,
        connect(server.url, game="any", version="1"),
    ):
        with pytest.raises(Unavailable):
            async with connect(server.url, game="any", version="1"):
                pass


async def test_the_same_request_id_leads_to_the_same_session(echo: GameServer) -> None:
    """One after the other here; at once it would be a conflict."""
    sessions = []
    for _ in range(2):
        async with connect(
            echo.url, game="any", version="1", request_id="abcdefghijklmnopqrstuvwx"
        ) as player:
            sessions.append(player.session_id)
    assert sessions[0] == sessions[1]


async def test_nothing_of_the_token_is_logged(echo: GameServer, caplog: pytest.LogCaptureFixture) -> None:
    """By either transport, with everything at DEBUG."""
    tokens: list[str] = []

    async def script(player: ServerConnection, request: str) -> None:
        for message in await ask_upstream(echo.url, request):
            if "SessionReady" in message:
                tokens.append(message.partition('"token":"')[2][:2732])
            await player.send(message)

    async with scripted_matchmaker(script) as url:
        with caplog.at_level(logging.DEBUG):
            logging.getLogger("websockets.server").setLevel(logging.INFO)  # the test's own matchmaker
            for way in WAYS:
                async with connect(url, game="any", version="1", transports=[way]):
                    pass
    assert len(tokens) == 2
    for token in tokens:
        assert len(token) == 2732
        assert token[60:90] not in caplog.text
    # Every token begins with NETCODE 1.02, which base64 and a dump of a frame's bytes show as:
    assert "TkVUQ09ERSAx" not in caplog.text
    assert "4e 45 54 43" not in caplog.text
