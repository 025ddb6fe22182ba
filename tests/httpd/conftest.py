"""A real httpd on a random port and a real nats-server; the matchmaker behind it is a stub that tests script.

Time-outs are scaled down where they are what a test is about (`SHORT`); a few slow tests run with the real values.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
import uvloop
import websockets
from nats.aio.msg import Msg

from tests.certificates import self_signed
from tests.polling import eventually
from tipoff_matchmaker_httpd.server.run import RunningHttpd, run_httpd
from tipoff_matchmaker_httpd.settings import Settings
from tipoff_shared.messages import ACKNOWLEDGED
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.settings import NatsSettings

READY = (
    b'{"SessionReady":{"token":"dG9rZW4=","ip":"203.0.113.7","port":30004,"cert_digest":"e3:76","session_id":"s1",'
    b'"client_id":"7","deployment_id":"arena-1","transports":{"udp":{"host":"203.0.113.7","port":30004}},'
    b'"from_the_future":true}}'
)
A_SEAT = (ACKNOWLEDGED, b'{"SessionRequestAccepted":"s1"}', READY, b"")

FAST: dict[str, Any] = {
    "port": 0,
    "close_timeout": 0.3,
    "linger": 0.05,
    "drain_timeout": 0.5,
    "nats_patience": 0.3,
    "request_timeout": 5.0,
    "acknowledge_timeout": 2.0,
}
SHORT: dict[str, Any] = {
    "head_timeout": 0.25,
    "first_message_timeout": 0.25,
    "ping_interval": 0.2,
    "ping_timeout": 0.2,
    "stall_timeout": 0.3,
}
"""What clients are given: for tests of just that. Elsewhere a busy machine would be taken for a slow client."""


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Any]:
    """The loop that the service runs on; where sockets are watched closely, the standard one as well."""
    del config
    factories: dict[str, Any] = {"uvloop": uvloop.new_event_loop}
    if item.path.name == "test_httpd_wire.py":
        factories["asyncio"] = asyncio.new_event_loop
    return factories


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name == "test_httpd_wire.py" and item.name.split("[")[-1].startswith("asyncio"):
            item.add_marker(pytest.mark.slow)


class Request:
    """One request as the stub got it."""

    def __init__(self, msg: Msg, bus: Bus) -> None:
        self.subject = msg.subject
        self.payload: dict[str, Any] = json.loads(msg.data)
        self.headers = msg.headers or {}
        self._reply = msg.reply
        self._bus = bus

    async def answer(self, *messages: bytes, headers: dict[str, str] | None = None) -> None:
        # No flush: nats-py's reader dies when one is cancelled, as unsubscribing does to a running callback.
        for message in messages:
            await self._bus.nc.publish(self._reply, message, headers=headers)


class StubMatchmaker:
    """Answers every request with `script`, or (script None) leaves it to the test: `await next_request()`."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.script: tuple[bytes, ...] | None = A_SEAT
        self.requests: list[Request] = []
        self._new: asyncio.Queue[Request] = asyncio.Queue()

    async def next_request(self, within: float = 5.0) -> Request:
        async with asyncio.timeout(within):
            return await self._new.get()

    async def received(self, msg: Msg) -> None:
        request = Request(msg, self.bus)
        self.requests.append(request)
        self._new.put_nowait(request)
        if self.script is not None:
            await request.answer(*self.script)

    async def ping(self, msg: Msg) -> None:
        await self.bus.nc.publish(msg.reply, b"stub")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[StubMatchmaker]:
        subjects = self.bus.subjects
        requests = await self.bus.nc.subscribe(subjects.all_requests, queue="matchmakers", cb=self.received)
        pings = await self.bus.nc.subscribe(subjects.ping_matchmaker, queue="matchmakers", cb=self.ping)
        await self.bus.flush()
        try:
            yield self
        finally:
            for subscription in (requests, pings):
                await subscription.unsubscribe()
            await self.bus.flush()


@pytest.fixture
async def matchmaker(nats: Bus) -> AsyncIterator[StubMatchmaker]:
    async with StubMatchmaker(nats).running() as stub:
        yield stub


Start = Callable[..., Awaitable[RunningHttpd]]


@pytest.fixture
async def start(settings: NatsSettings) -> AsyncIterator[Start]:
    """`await start(**settings)`: an httpd with these settings over the fast ones, until the test ends."""
    async with AsyncExitStack() as stack:

        async def starting(**changes: Any) -> RunningHttpd:
            made = Settings.load(**(FAST | changes))
            return await stack.enter_async_context(run_httpd(made, settings))

        yield starting


@pytest.fixture
async def httpd(start: Start) -> RunningHttpd:
    return await start()


@pytest.fixture
async def impatient(start: Start) -> RunningHttpd:
    """An httpd that gives its clients little time."""
    return await start(**SHORT)


class Raw:
    """A bare TCP connection to an httpd, for bytes that no client library would send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.opened = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def to(cls, httpd: RunningHttpd, source: str = "127.0.0.1") -> AsyncIterator[Raw]:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpd.port, local_addr=(source, 0))
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def until_closed(self, within: float = 5.0) -> bytes:
        """All that comes until the other side closes (a reset is a close, too)."""
        got = b""
        async with asyncio.timeout(within):
            try:
                while data := await self.reader.read(65536):
                    got += data
            except ConnectionError:
                pass
        return got

    async def upgrade(self, path: str = "/matchmaker/ws", **headers: str) -> bytes:
        """The WebSocket handshake; the response head."""
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
        key = base64.b64encode(b"0123456789abcdef").decode()
        self.send(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{''.join(lines)}\r\n".encode()
        )
        async with asyncio.timeout(5):
            return await self.reader.readuntil(b"\r\n\r\n")

    def frame(
        self, opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, mask: bool = True
    ) -> None:
        self.send(frame(opcode, payload, fin=fin, rsv=rsv, mask=mask))


def frame(opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """One WebSocket frame as a client sends it (RFC 6455 §5.2); the mask is all zeros."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    flag = 0x80 if mask else 0
    if len(payload) < 126:
        head = struct.pack("!BB", first, flag | len(payload))
    elif len(payload) < 65536:
        head = struct.pack("!BBH", first, flag | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, flag | 127, len(payload))
    return head + (b"\0\0\0\0" if mask else b"") + payload


def close_code(data: bytes) -> int | None:
    """The code of the close frame that `data` (of an unmasked, short-framed stream) ends with."""
    at = 0
    while at + 2 <= len(data):
        opcode, length = data[at] & 15, data[at + 1] & 127
        at += 2
        if length == 126:
            (length,) = struct.unpack_from("!H", data, at)
            at += 2
        if opcode == 8:
            return int(struct.unpack_from("!H", data, at)[0]) if length >= 2 else 1005
        at += length
    return None


@pytest.fixture
def raw() -> Callable[..., AbstractAsyncContextManager[Raw]]:
    return Raw.to


@pytest.fixture
def ends_with() -> Callable[[bytes], int | None]:
    return close_code


@pytest.fixture
def ws_frame() -> Callable[..., bytes]:
    return frame


class Conversation:
    """What a player read on a WebSocket, and how it was closed."""

    def __init__(self, messages: list[Any], code: int | None, reason: str, seconds: float) -> None:
        self.messages = messages
        self.code = code
        self.reason = reason
        self.seconds = seconds

    @property
    def error(self) -> int | None:
        last = self.messages[-1] if self.messages else None
        return last["Error"][0] if isinstance(last, dict) and "Error" in last else None


def ws_url(httpd: RunningHttpd, path: str = "/matchmaker/ws") -> str:
    return httpd.url.replace("http", "ws", 1) + path


Ask = Callable[..., Awaitable[Conversation]]


@pytest.fixture
def ask() -> Ask:
    """`await ask(httpd, first_message)`: a whole conversation as a client library has it."""

    async def asking(
        httpd: RunningHttpd,
        *first: str | bytes,
        path: str = "/matchmaker/ws",
        within: float = 10.0,
        **options: Any,
    ) -> Conversation:
        began = time.monotonic()
        messages: list[Any] = []
        async with (
            asyncio.timeout(within),
            websockets.connect(ws_url(httpd, path), proxy=None, **options) as socket,
        ):
            with suppress(websockets.ConnectionClosed):
                for message in first or ('{"game":"arena","version":"1"}',):
                    await socket.send(message)
            with suppress(websockets.ConnectionClosed):
                while True:
                    messages.append(json.loads(await socket.recv()))
        return Conversation(messages, socket.close_code, socket.close_reason or "", time.monotonic() - began)

    return asking


@pytest.fixture
def connect_ws() -> Callable[[RunningHttpd], Any]:
    return lambda httpd, **options: websockets.connect(ws_url(httpd), proxy=None, **options)


@pytest.fixture
async def http(httpd: RunningHttpd) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=httpd.url, timeout=10, trust_env=False) as client:
        yield client


@pytest.fixture(name="eventually")
def eventually_fixture() -> Callable[..., Awaitable[None]]:
    return eventually


@pytest.fixture
def second_bus(settings: NatsSettings) -> Callable[[], AbstractAsyncContextManager[Bus]]:
    return lambda: connect(settings, name="second")


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A self-signed certificate for localhost and its key, as PEM files."""
    certificate, key = self_signed(tmp_path_factory.mktemp("tls"))
    return str(certificate), str(key)
