"""The client SDK's transports by themselves: what ends a connection, and how the game hears of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

from tests.certificates import self_signed
from tipoff_client_sdk import Closed, ConnectionFailed, Refused, ServerLost
from tipoff_client_sdk.inbox import Inbox
from tipoff_client_sdk.transports import websocket
from tipoff_client_sdk.transports.udp import REFUSALS_WHILE_DIALLING, UdpChannel
from tipoff_client_sdk.transports.websocket import WebSocketChannel, dial_websocket
from tipoff_shared.messages import Admitted, Failed, encode_admission
from tipoff_shared.netcode import Address, ConnectToken, PrivateKey, issue_token

# --- UDP ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def dialling() -> AsyncIterator[tuple[UdpChannel, asyncio.Future[None]]]:
    """A channel that asks a server which says nothing, and its call of `open`, once the request has come."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.setblocking(False)
        token = token_for(Address("127.0.0.1", silent.getsockname()[1]))
        channel = UdpChannel(token, token.addresses[0], Inbox(8))
        opening = asyncio.ensure_future(channel.open(patience=None, timeout=60))
        await asyncio.get_running_loop().sock_recv(silent, 2048)
        yield channel, opening
        await channel.close()


def token_for(address: Address) -> ConnectToken:
    return issue_token(
        PrivateKey.generate(), protocol_id=7, client_id=1, public_addresses=[address], now=time.time()
    )


async def test_a_server_that_answers_in_between_is_not_taken_for_a_closed_port() -> None:
    """So many errors of the kernel count only where nothing else came since the first of them."""
    async with dialling() as (channel, opening):
        for _ in range(2):
            channel.datagram_received(b"noise", None)
            for _ in range(REFUSALS_WHILE_DIALLING - 1):
                channel.error_received(ConnectionRefusedError())
        await asyncio.sleep(0)
        assert not opening.done()
        channel.error_received(ConnectionRefusedError())
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionFailed, match="nothing listens there"):
                await opening


async def test_who_stops_dialling_hears_so_at_once() -> None:
    async with dialling() as (channel, opening):
        await channel.close()
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionFailed, match=r"udp 127\.0\.0\.1"):
                await opening


async def test_who_sends_on_a_closed_channel_hears_why() -> None:
    async with dialling() as (channel, opening):
        await channel.close()
        with pytest.raises(Closed, match="closed"):
            await channel.send(b"hello")
        with pytest.raises(ConnectionFailed):
            await opening


# --- WebSocket ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def server(
    after: Callable[[ServerConnection], Awaitable[object]],
    answer: Admitted | Failed | str | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """A game server that answers a token and then does `after`; yields its URL."""

    async def handler(ws: ServerConnection) -> None:
        await ws.recv()
        said = Admitted(3, 20.0) if answer is None else answer
        await ws.send(said if isinstance(said, str) else encode_admission(said).decode())
        await after(ws)

    async with serve(handler, "127.0.0.1", 0, ssl=tls) as listening:
        yield f"{'wss' if tls else 'ws'}://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/"


async def dial(url: str, **options: Any) -> tuple[WebSocketChannel, Inbox]:
    inbox = Inbox(8)
    return await dial_websocket(url, bytes(2048), inbox, timeout=20, **options), inbox


@pytest.mark.parametrize(
    ("code", "said", "reason", "lost"),
    [
        *[(code, "bye", "bye", False) for code in (1000, 1001, 1008, 1012, 1013, 4000, 4999)],
        (1000, "", "the server closed the connection", False),
        (1011, "boom", "the server failed: 1011 boom", True),
        (1002, "", "the server failed: 1002", True),
        (3999, "", "the server failed: 3999", True),
    ],
)
async def test_a_close_code_says_whether_the_server_is_lost(
    code: int, said: str, reason: str, lost: bool
) -> None:
    """And the game is told why, by the next call of either direction."""
    async with server(lambda ws: ws.close(code, said)) as url:
        channel, inbox = await dial(url)
        async with asyncio.timeout(20):
            ending = await inbox.ended()
        assert (ending.reason, isinstance(ending.error, ServerLost)) == (reason, lost)
        assert str(ending.error or reason) == reason
        with pytest.raises(ServerLost if lost else Closed, match=reason):
            await channel.send(b"anybody?")
        await channel.close()


async def test_a_connection_that_breaks_is_a_lost_server() -> None:
    async def breaks(ws: ServerConnection) -> None:
        ws.transport.abort()

    async with server(breaks) as url:
        channel, inbox = await dial(url)
        async with asyncio.timeout(20):
            ending = await inbox.ended()
        assert ending.reason == str(ending.error) == "the connection to the server broke"
        await channel.close()


async def test_a_server_that_answers_no_pings_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_EVERY", 0.05)
    monkeypatch.setattr(websocket, "PONG_WITHIN", 0.05)

    over = asyncio.Event()

    async def hangs(ws: ServerConnection) -> None:
        ws.transport.pause_reading()
        await over.wait()
        ws.transport.abort()

    async with server(hangs) as url:
        channel, inbox = await dial(url)
        async with asyncio.timeout(20):
            ending = await inbox.ended()
        over.set()
        assert ending.reason.startswith("the server does not respond (keepalive")
        assert isinstance(ending.error, ServerLost)
        await channel.close()


async def test_text_after_the_admission_is_not_the_games() -> None:
    async def talks(ws: ServerConnection) -> None:
        for message in ("text", b"one", "text", b"two"):
            await ws.send(message)

    async with server(talks) as url:
        channel, inbox = await dial(url)
        assert channel.client_index == 3
        async with asyncio.timeout(20):
            assert [await inbox.get() for _ in range(3)] == [b"one", b"two", None]
        await channel.close()


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (Failed(403, "no"), Refused, "refused: no"),
        ("nonsense", ConnectionFailed, "websocket ws://"),
    ],
)
async def test_a_server_that_lets_nobody_in_is_left(
    answer: Failed | str, error: type[Exception], said: str
) -> None:
    """With a goodbye."""
    left: asyncio.Queue[int | None] = asyncio.Queue(1)

    async def sees(ws: ServerConnection) -> None:
        await ws.wait_closed()
        left.put_nowait(ws.close_code)

    async with server(sees, answer) as url:
        with pytest.raises(error, match=said):
            await dial(url)
        async with asyncio.timeout(20):
            assert await left.get() == 1000


async def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    """It may be no WebSocket server at all."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}/"
        async with asyncio.timeout(60):
            with pytest.raises(ConnectionFailed, match=r"no answer within 0\.2 s") as raised:
                await dial_websocket(url, bytes(2048), Inbox(8), timeout=0.2)
        assert not raised.value.closed


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("", "/?max_message=65536"),
        ("/", "/?max_message=65536"),
        ("/gs/one", "/gs/one?max_message=65536"),
        ("/?a=b", "/?a=b&max_message=65536"),
    ],
)
async def test_a_url_may_have_any_path(path: str, asked: str) -> None:
    """Or none. The server is told how long a message the client takes."""
    seen: list[str] = []

    async def noted(ws: ServerConnection) -> None:
        assert ws.request is not None
        seen.append(ws.request.path)
        await ws.wait_closed()

    async with server(noted) as url:
        channel, _ = await dial(url.rstrip("/") + path)
        await channel.close()
    assert seen == [asked]


async def test_a_port_where_nothing_listens_is_known_to_be_closed() -> None:
    """So nobody waits for another answer there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ConnectionFailed, match=f"websocket ws://127.0.0.1:{port}/: ") as raised:
        await dial(f"ws://127.0.0.1:{port}/")
    assert raised.value.closed


async def test_trust_for_wss_does_no_harm_to_a_plain_connection_to_a_name() -> None:
    """One server of a game may have a certificate and another one none."""
    async with server(lambda ws: ws.wait_closed()) as url:
        channel, _ = await dial(url.replace("127.0.0.1", "localhost"), ssl=ssl.create_default_context())
        await channel.close()


async def test_trust_is_for_wss(tmp_path: Path) -> None:
    """Without it the server's certificate is not known."""
    cert, key = self_signed(tmp_path)
    identity = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.load_cert_chain(cert, key)
    async with server(lambda ws: ws.wait_closed(), tls=identity) as url:
        channel, _ = await dial(url, ssl=ssl.create_default_context(cafile=str(cert)))
        await channel.close()
        with pytest.raises(ConnectionFailed, match="certificate"):
            await dial(url)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("ws://8.8.8.8:1/", True),
        ("ws://[2001:4860:4860::8888]:1/", True),
        ("wss://8.8.8.8:1/", False),
        ("ws://10.1.2.3:1/", False),
        ("ws://127.0.0.1:1/", False),
        ("ws://localhost:1/", False),
    ],
)
async def test_a_token_in_clear_on_the_internet_is_warned_of(
    url: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise OSError("nobody is there")  # and no test goes there

    monkeypatch.setattr(websocket, "connect", nobody)
    with pytest.raises(ConnectionFailed, match="nobody is there"):
        await dial(url)
    assert ("is not encrypted" in caplog.text) is warned
