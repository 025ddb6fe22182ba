"""A game that records every callback, and players by UDP and by WebSocket."""

from __future__ import annotations

import asyncio
import base64
import itertools
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect

from tipoff_gameserver import Context, Game, GameServer, LeaveReason, Player
from tipoff_shared.messages import (
    Admitted,
    Failed,
    Feedback,
    SessionReady,
    decode_admission,
    decode_feedback,
)
from tipoff_shared.netcode import Address, Client, ClientState, Dialect, Frame, Payload, issue_token
from tipoff_shared.netcode.packet import PacketWriter, cipher
from tipoff_shared.netcode.token import ConnectToken
from tipoff_shared.user_data import TokenUserData

TIMEOUT = 20.0
_client_ids = itertools.count(1000)
TURNS = 20
"""Turns of the event loop within which a datagram has come, on loopback: a millisecond, when no timer is waited for."""


async def within_turns(what: Callable[[], bool]) -> bool:
    for _ in range(TURNS):
        if what():
            return True
        await asyncio.sleep(0)
    return what()


class Recorder(Game):
    """Echoes every message and records every callback."""

    def __init__(self) -> None:
        self.happened: list[tuple[Any, ...]] = []
        self.news = asyncio.Event()
        self.server: GameServer | None = None

    def _note(self, *what: Any) -> None:
        self.happened.append(what)
        self.news.set()

    def on_start(self, server: GameServer) -> None:
        self.server = server

    def on_join(self, player: Player) -> None:
        self._note("join", player)

    def on_message(self, player: Player, data: bytes) -> Any:
        self._note("message", player, data)
        player.send(data)

    def on_drop(self, player: Player) -> None:
        self._note("drop", player)

    def on_resume(self, player: Player) -> None:
        self._note("resume", player)

    def on_leave(self, player: Player, reason: LeaveReason) -> None:
        self._note("leave", player, reason)

    def on_stop(self, server: GameServer) -> None:
        self._note("stop")

    async def saw(self, kind: str, count: int = 1, timeout: float = TIMEOUT) -> list[tuple[Any, ...]]:
        """The events of this kind, once there are `count` of them."""
        try:
            async with asyncio.timeout(timeout):
                while len(found := [event for event in self.happened if event[0] == kind]) < count:
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            raise AssertionError(f"no {count} x {kind} within {timeout:g} s: {self.happened}") from None
        return found


def token_for(
    server: GameServer,
    session: str = "s1",
    *,
    client_id: int | None = None,
    context: Context | None = None,
    boot_id: str | None = None,
    deployment_id: str | None = None,
    generation: int = 0,
    lifetime: float = 30,
    address: Address | None = None,
    user_data: bytes | None = None,
    timeout: int = 5,
    resume_ttl: int = 0,
) -> bytes:
    """A token as the matchmaker would issue it for this server, unless something is to be wrong with it."""
    context = context or server.context
    udp = server.transports.udp
    where = address or Address("127.0.0.1", udp.port if udp else 1)
    ours = TokenUserData(
        session,
        deployment_id if deployment_id is not None else context.deployment_id,
        boot_id if boot_id is not None else server.boot_id,
        generation,
        resume_ttl=resume_ttl,
    ).encode()
    return issue_token(
        context.private_key,
        protocol_id=context.protocol_id,
        client_id=next(_client_ids) if client_id is None else client_id,
        public_addresses=[where],
        user_data=ours if user_data is None else user_data,
        lifetime=lifetime,
        timeout=timeout,
        now=time.time() - (100 if lifetime < 0 else 0),
        dialect=context.dialect,
    ).encode()


def expired_token_for(server: GameServer) -> bytes:
    context = server.context
    return issue_token(
        context.private_key,
        protocol_id=context.protocol_id,
        client_id=1,
        public_addresses=[Address("127.0.0.1", server.transports.udp.port)],  # type: ignore[union-attr]
        user_data=TokenUserData("s1", context.deployment_id, server.boot_id).encode(),
        lifetime=10,
        now=time.time() - 60,
    ).encode()


async def ask(url: str, request: str | bytes = '{"game": "g", "version": "1"}') -> list[Feedback]:
    """All that `/matchmaker/ws` answers."""
    async with asyncio.timeout(TIMEOUT), connect(url) as ws:
        await ws.send(request)
        return [decode_feedback(message) async for message in ws]


async def ready(server: GameServer, request: str = '{"game": "g", "version": "1"}') -> SessionReady:
    """A seat on a stand-alone server."""
    answer = (await ask(server.url, request))[-1]
    assert isinstance(answer, SessionReady), answer
    return answer


def token_of(answer: SessionReady) -> bytes:
    return base64.b64decode(answer.token)


class WebSocketPlayer:
    """A connection after the token was sent; `answer` is the server's."""

    def __init__(self, ws: ClientConnection, answer: Admitted | Failed) -> None:
        self.ws = ws
        self.answer = answer

    async def send(self, data: bytes) -> None:
        await self.ws.send(data)

    async def receive(self) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            message = await self.ws.recv()
        assert isinstance(message, bytes)
        return message


@asynccontextmanager
async def by_websocket(server: GameServer, token: bytes) -> AsyncIterator[WebSocketPlayer]:
    assert server.transports.websocket is not None
    async with connect(server.transports.websocket.url, close_timeout=1) as ws:
        async with asyncio.timeout(TIMEOUT):
            await ws.send(token)
            answer = decode_admission(await ws.recv())
        yield WebSocketPlayer(ws, answer)


class UdpPlayer:
    """A netcode client with its own socket; a task drives it."""

    def __init__(self, token: bytes, local: str = "127.0.0.1", dialect: Dialect | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET6 if ":" in local else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind((local, 0))
        self._token = token
        self.client = Client(token, now=self._loop.time(), dialect=dialect)
        self.received: asyncio.Queue[bytes] = asyncio.Queue()
        self.changed = asyncio.Event()
        self.requests = 0
        """Datagrams sent before it was connected."""
        self.silent = False
        """Set to send nothing more, not even a disconnect."""

    @property
    def state(self) -> ClientState:
        return self.client.state

    async def drive(self) -> None:
        while self.client.state > ClientState.DISCONNECTED:
            self._flush()
            try:
                async with asyncio.timeout_at(self.client.next_timeout()):
                    data, peer = await self._loop.sock_recvfrom(self._socket, 2048)
                self.client.receive_datagram(data, Address.from_socket(peer), self._loop.time())
            except (TimeoutError, ConnectionError):
                pass
            self.client.update(self._loop.time())
            for event in self.client.events():
                if isinstance(event, Payload):
                    self.received.put_nowait(event.data)
                self.changed.set()
        self._flush()

    def _flush(self) -> None:
        for data, address in self.client.datagrams_to_send():
            self.requests += self.client.state is not ClientState.CONNECTED
            if not self.silent:
                self._socket.sendto(data, address)

    async def reaches(self, state: ClientState, timeout: float = TIMEOUT) -> None:
        """Wait until the client is in `state`."""
        try:
            async with asyncio.timeout(timeout):
                while self.client.state is not state:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise AssertionError(
                f"{self.client.state!r} after {timeout:g} s: {self.client.failure}"
            ) from None

    def send(self, data: bytes) -> None:
        assert self.client.send(data, self._loop.time())
        self._flush()

    def flood(self, kind: int, body: bytes, count: int) -> None:
        """Send as many packets of a kind as the client never would, with the keys of its connection."""
        token = ConnectToken.decode(self._token)
        writer, encrypt = PacketWriter(token.protocol_id), cipher(token.client_to_server_key).encrypt
        first = self.client.next_sequence
        self.client.next_sequence += count
        packets = [writer.write(encrypt, kind, first + number, body) for number in range(count)]
        assert self.client.server_address is not None
        for packet in packets:
            self._socket.sendto(packet, self.client.server_address)

    async def receive(self) -> bytes:
        async with asyncio.timeout(TIMEOUT):
            return await self.received.get()

    def leave(self) -> None:
        self.client.disconnect(self._loop.time())
        self._flush()

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def by_udp(
    token: bytes, *, local: str = "127.0.0.1", wait: bool = True, dialect: Dialect | None = None
) -> AsyncIterator[UdpPlayer]:
    player = UdpPlayer(token, local, dialect)
    task = asyncio.create_task(player.drive())
    try:
        if wait:
            await player.reaches(ClientState.CONNECTED)
        yield player
    finally:
        player.leave()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        player.close()


class FramedUdp(asyncio.DatagramProtocol):
    """A netcode client that knows frames, keeps those it gets, and answers none."""

    def __init__(self, token: bytes) -> None:
        self._loop = asyncio.get_running_loop()
        self.client = Client(token, now=self._loop.time(), framing=True)
        self._address = ConnectToken.decode(token).addresses[0]
        self.frames: list[bytes] = []
        self.connected = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.client.receive_datagram(data, self._address, self._loop.time())
        self.frames += [event.data for event in self.client.events() if isinstance(event, Frame)]
        self.flush()

    def flush(self) -> None:
        for data, _ in self.client.datagrams_to_send():
            self.transport.sendto(data)
        if self.client.state is ClientState.CONNECTED:
            self.connected.set()

    def send(self, frame: bytes) -> None:
        assert self.client.send_frame(frame, self._loop.time())
        self.flush()


@asynccontextmanager
async def by_udp_framed(token: bytes) -> AsyncIterator[FramedUdp]:
    address = ConnectToken.decode(token).addresses[0]
    transport, player = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: FramedUdp(token), remote_addr=address
    )
    try:
        player.flush()
        async with asyncio.timeout(TIMEOUT):
            await player.connected.wait()
        yield player
    finally:
        transport.close()


class DeafUdp:
    """A netcode client that hears nothing until it is told to: what the server answers stays in its socket.

    It sends to `to` where that is given, else to the token's address.
    """

    def __init__(self, token: bytes, to: Address | None = None) -> None:
        self._to = to
        self._loop = asyncio.get_running_loop()
        self._client = Client(token, now=self._loop.time())
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(("127.0.0.1", 0))
        self._challenge: tuple[bytes, Address] | None = None
        self._flush()

    async def hears(self) -> tuple[bytes, Address]:
        """The server's next datagram, which the client does not get."""
        async with asyncio.timeout(TIMEOUT):
            data, peer = await self._loop.sock_recvfrom(self._socket, 2048)
        return data, Address.from_socket(peer)

    async def was_challenged(self) -> None:
        """The server wants to know whether the client receives at its address."""
        self._challenge = await self.hears()

    def answer_challenge(self) -> None:
        assert self._challenge is not None
        self._client.receive_datagram(*self._challenge, self._loop.time())
        assert self._client.state is ClientState.SENDING_CONNECTION_RESPONSE
        self._client.update(self._loop.time())
        self._flush()

    def _flush(self) -> None:
        for data, address in self._client.datagrams_to_send():
            self._socket.sendto(data, self._to or address)

    def has_heard(self) -> bool:
        """Whether the server has sent anything that was not taken."""
        try:
            return bool(self._socket.recv(2048, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def deaf_udp(token: bytes, *, to: Address | None = None) -> AsyncIterator[DeafUdp]:
    player = DeafUdp(token, to)
    try:
        yield player
    finally:
        player.close()
