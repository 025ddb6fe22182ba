"""Measures what a game server's players notice of an attack on it: the same players, with and without it, in one run.

Server, players and attacker are three processes. Sixteen players send a numbered input 60 times a second and receive a
numbered snapshot at each tick, so that each packet that is lost on either way is known.

    python -m bench.gameserver_attacks
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import json
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from bench.gameserver import tokens
from tipoff_gameserver import Game, GameServer, Player
from tipoff_shared.messages import SessionReady
from tipoff_shared.netcode import Address, Client, ClientState, ConnectToken, Payload, PrivateKey, issue_token
from tipoff_shared.primitives.text import describe

PLAYERS = 16
RATE = 60
STREAM_RATE = 20
"""Snapshots per second beside a loud player."""
SECONDS = 8.0
FORGED = 50_000
"""Forged connection requests per second."""
JOINS = 32
PROTOCOL_ID = 0x7469706F6666

_NUMBERS = struct.Struct("<II")
_TURN = 0.001
_SETTLE = 0.3
"""Seconds after which what was sent has arrived, or is lost."""


def run() -> Iterator[dict[str, object]]:
    """Yield the figures; `bench` prints them."""
    yield from forged_requests(sources=1)
    yield from forged_requests(sources=200)
    yield from loud_player("websocket")
    yield from loud_player("udp")
    yield from strangers()


# --- the server -------------------------------------------------------------------------------------------------


class _Counting(Game):
    """Counts each player's inputs, and tells it the count with each snapshot."""

    def on_start(self, server: GameServer) -> None:
        assert server.transports.udp is not None
        print(json.dumps({"url": server.url, "port": server.transports.udp.port}), flush=True)

    def on_join(self, player: Player) -> None:
        player.data = 0

    def on_message(self, player: Player, data: bytes) -> None:
        player.data += 1

    def tick(self, server: GameServer, dt: float) -> None:
        for player in server.players:
            player.send(_NUMBERS.pack(server.ticks, player.data) + bytes(100))


def serve(rate: int) -> None:
    game = _Counting()
    GameServer(
        game, tick_rate=rate, stand_alone=True, listen="127.0.0.1:0", capacity=64, protocol_id=PROTOCOL_ID
    ).main()


@contextlib.contextmanager
def _server(rate: int = RATE) -> Iterator[dict[str, Any]]:
    with _process("serve", str(rate), stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        yield json.loads(server.stdout.readline())


@contextlib.contextmanager
def _process(*arguments: str, stdout: int | None = None) -> Iterator[subprocess.Popen[str]]:
    """This file as a command, ended with the block."""
    command = [sys.executable, "-m", "bench.gameserver_attacks", *arguments]
    environment = {**os.environ, "TIPOFF_LOG_LEVEL": "ERROR"}
    with subprocess.Popen(command, stdout=stdout, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


# --- the players ------------------------------------------------------------------------------------------------


class _UdpPlayer:
    def __init__(self, token: ConnectToken, now: float) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.client = Client(token, now=now)
        self.due = now + random.random() / RATE  # a phase, no secret
        self.sent = self.snapshots = 0
        self.ticks = self.counted = 0
        """The last snapshot's numbers: the server's ticks, and the inputs that reached it."""

    def turn(self, now: float, *, sending: bool) -> None:
        """Read what has come and send what is due."""
        try:
            while True:
                data, peer = self.sock.recvfrom(2048)
                self.client.receive_datagram(data, Address.from_socket(peer), now)
        except (BlockingIOError, ConnectionError):
            pass
        if sending and now >= self.due and self.client.send(bytes(12), now):
            self.sent += 1
            self.due += 1 / RATE
        self.client.update(now)
        for data, address in self.client.datagrams_to_send():
            self.sock.sendto(data, address)
        for event in self.client.events():
            if isinstance(event, Payload):
                self.ticks, self.counted = _NUMBERS.unpack_from(event.data)
                self.snapshots += 1


def _play(players: list[_UdpPlayer], seconds: float, *, sending: bool = True) -> None:
    ends = time.monotonic() + seconds
    while (now := time.monotonic()) < ends:
        for player in players:
            player.turn(now, sending=sending)
        time.sleep(max(0.0, now + _TURN - time.monotonic()))


def _losses(players: list[_UdpPlayer], seconds: float) -> tuple[float, float]:
    """Percent of the inputs and of the snapshots that were lost during `seconds`."""
    for player in players:
        player.due = time.monotonic() + random.random() / RATE
    before = [(player.sent, player.counted, player.ticks, player.snapshots) for player in players]
    _play(players, seconds)
    _play(players, _SETTLE, sending=False)
    sent = counted = ticks = snapshots = 0
    for player, was in zip(players, before, strict=True):
        sent += player.sent - was[0]
        counted += player.counted - was[1]
        ticks += player.ticks - was[2]
        snapshots += player.snapshots - was[3]
    return 100 * (1 - counted / sent), 100 * (1 - snapshots / ticks)


# --- forged connection requests -----------------------------------------------------------------------------------


def forged_requests(sources: int) -> Iterator[dict[str, object]]:
    """`FORGED` requests a second of the right form, which only decrypting tells from a player's, from `sources`
    addresses."""
    with _server() as server:
        now = time.monotonic()
        ready = asyncio.run(tokens(server["url"], PLAYERS))
        players = [_UdpPlayer(ConnectToken.from_base64(found.token), now) for found in ready]
        _play(players, 1.0)
        _play(players, _SETTLE, sending=False)
        quiet = _losses(players, SECONDS)
        with _process(
            "forge", str(server["port"]), str(FORGED), str(sources), stdout=subprocess.PIPE
        ) as forger:
            _play(players, 1.0)
            _play(players, _SETTLE, sending=False)
            flooded = _losses(players, SECONDS)
            [last] = asyncio.run(tokens(server["url"], 1))  # now: a token is good for 15 s
            began = time.monotonic()
            late = _UdpPlayer(ConnectToken.from_base64(last.token), began)
            while late.client.state is not ClientState.CONNECTED and time.monotonic() < began + 5:
                _play([*players, late], 0.005)
            joined = time.monotonic() - began
            forger.terminate()
            assert forger.stdout is not None
            rate = json.loads(forger.stdout.readline())["rate"]
    beside = f"{sources} address{'es' * (sources > 1)}"
    for what, before, after in zip(("inputs", "snapshots"), quiet, flooded, strict=True):
        figure = f"{what} of {PLAYERS} UDP players lost"
        yield {"figure": f"{figure}, undisturbed", "value": round(before, 2), "unit": "%"}
        yield {
            "figure": f"{figure}, beside {rate} forged requests/s from {beside}",
            "value": round(after, 2),
            "unit": "%",
        }
    yield {
        "figure": f"one more player joins beside forged requests from {beside}",
        "value": round(joined, 2),
        "unit": "s",
    }


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("header", _Msghdr), ("sent", ctypes.c_uint32))


def forge(port: int, rate: int, sources: int) -> None:
    """Send until SIGTERM, a batch each millisecond with `sendmmsg` (Linux), then print the rate that was reached."""
    key = PrivateKey.generate()
    home = Address("127.0.0.1", port)
    token = issue_token(key, protocol_id=PROTOCOL_ID, client_id=1, public_addresses=[home], now=time.time())
    request = token.request_packet()
    size = len(request)
    packets = [ctypes.create_string_buffer(request[:-8] + os.urandom(8), size) for _ in range(256)]
    iovecs = (_Iovec * len(packets))(
        *(_Iovec(ctypes.cast(packet, ctypes.c_void_p), size) for packet in packets)
    )
    messages = (_Mmsghdr * len(packets))()
    for number, message in enumerate(messages):
        message.header.iov = ctypes.pointer(iovecs[number])
        message.header.iovlen = 1
    sockets = []
    for number in range(sources):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((f"127.0.{1 + number // 250}.{1 + number % 250}", 0))
        sock.connect(home)
        sockets.append(sock)
    sendmmsg = ctypes.CDLL(None, use_errno=True).sendmmsg
    began = time.monotonic()
    sent = turns = 0
    try:
        while True:
            now = time.monotonic()
            due = min(len(packets), int((now - began) * rate) - sent)
            if due > 0:
                sock = sockets[turns % sources]
                turns += 1
                sent += max(0, sendmmsg(sock.fileno(), messages, due, 0))
            time.sleep(_TURN)
    finally:
        print(json.dumps({"rate": round(sent / (time.monotonic() - began))}), flush=True)


# --- an admitted player who sends without end ---------------------------------------------------------------------


def loud_player(transport: str) -> Iterator[dict[str, object]]:
    """The slowest second of a victim's stream, without and with a player who sends as fast as it can."""
    with _server(STREAM_RATE) as server:
        ready = asyncio.run(tokens(server["url"], 1))[0]
        victim = _UdpPlayer(ConnectToken.from_base64(ready.token), time.monotonic())
        _play([victim], 1.0)
        quiet = _slowest_second(victim)
        with _process("shout", transport, server["url"], stdout=subprocess.PIPE) as shouter:
            loud = _slowest_second(victim)
            shouter.terminate()
            assert shouter.stdout is not None
            said = json.loads(shouter.stdout.readline())
    figure = f"snapshots to a player, slowest second of {SECONDS:g}"
    beside = f"beside a player who sends without end by {transport} ({said['sent']} sent, {said['ended']})"
    yield {"figure": f"{figure}, undisturbed", "value": quiet, "unit": "1/s"}
    yield {"figure": f"{figure}, {beside}", "value": loud, "unit": "1/s"}


def _slowest_second(victim: _UdpPlayer) -> int:
    counts = []
    for _ in range(round(SECONDS)):
        before = victim.snapshots
        _play([victim], 1.0)
        counts.append(victim.snapshots - before)
    return min(counts)


def shout(transport: str, url: str) -> None:
    """Join and send one-byte messages as fast as possible until SIGTERM, joining again whenever the server hangs up."""
    sent = ends = 0
    try:
        while True:
            ready = asyncio.run(tokens(url, 1))[0]
            for count in _shout_by_udp(ready) if transport == "udp" else _shout_by_websocket(ready):
                sent += count
            ends += 1
    finally:
        print(json.dumps({"sent": sent, "ended": f"disconnected {ends} times"}), flush=True)


def _shout_by_websocket(ready: SessionReady) -> Iterator[int]:
    assert ready.transports.websocket is not None
    host, port = urlsplit(ready.transports.websocket.url).netloc.split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        sock.recv(4096)
        sock.sendall(b"\x82\xfe\x08\x00" + bytes(4) + base64.b64decode(ready.token))
        sock.recv(4096)
        frames = (b"\x82\x81" + bytes(4) + b"x") * 10_000
        try:
            while True:
                sock.sendall(frames)
                yield 10_000
        except OSError:
            return


def _shout_by_udp(ready: SessionReady) -> Iterator[int]:
    player = _UdpPlayer(ConnectToken.from_base64(ready.token), time.monotonic())
    with player.sock:
        while (state := player.client.state) >= ClientState.SENDING_CONNECTION_REQUEST:
            now = time.monotonic()
            if state is ClientState.CONNECTED:
                for _ in range(1000):
                    player.client.send(b"x", now)
                yield 1000
            player.turn(now, sending=False)


# --- connections that show no token -------------------------------------------------------------------------------


def strangers() -> Iterator[dict[str, object]]:
    """Players who join by WebSocket, without and with an address that opens silent connections without end."""
    with _server() as server:
        quiet = asyncio.run(_joins(server["url"]))
        port = urlsplit(server["url"]).port
        with _process("loiter", str(port), stdout=subprocess.PIPE) as loiterer:
            time.sleep(2.0)
            crowded = asyncio.run(_joins(server["url"]))
            loiterer.terminate()
            assert loiterer.stdout is not None
            rate = json.loads(loiterer.stdout.readline())["rate"]
    beside = f"beside {rate} silent connections/s from one address"
    for (joined, slowest), when in ((quiet, "undisturbed"), (crowded, beside)):
        yield {"figure": f"of {JOINS} players joined by WebSocket, {when}", "value": joined, "unit": ""}
        yield {"figure": f"slowest join by WebSocket, {when}", "value": slowest, "unit": "ms"}


async def _joins(url: str) -> tuple[int, float]:
    """How many of `JOINS` players got in, one after the other, and the milliseconds of the slowest. What kept the
    others out is printed to standard error."""
    joined, slowest = 0, 0.0
    for number in range(JOINS):
        began = time.perf_counter()
        try:
            async with asyncio.timeout(5):
                answer = await _join(url)
        except (WebSocketException, OSError) as exc:  # a timeout is an OSError
            answer = describe(exc)
        slowest = max(slowest, 1000 * (time.perf_counter() - began))
        if "Admitted" in answer:
            joined += 1
        else:
            print(f"player {number} was kept out: {answer}", file=sys.stderr)
    return joined, round(slowest, 1)


async def _join(url: str) -> str:
    """What the server answers to one player."""
    seats = await tokens(url, 1)
    if not seats:
        return "no seat"
    assert seats[0].transports.websocket is not None
    async with connect(seats[0].transports.websocket.url) as ws:
        await ws.send(base64.b64decode(seats[0].token))
        return str(await ws.recv())


def loiter(port: int) -> None:
    """Open up to 600 connections a second until SIGTERM, and keep each until the server closes it."""
    kept: deque[socket.socket] = deque(maxlen=900)
    began, opened = time.monotonic(), 0
    try:
        while True:
            while opened < (time.monotonic() - began) * 600:
                kept.append(socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.66", 0)))
                opened += 1
            time.sleep(_TURN)
    finally:
        print(json.dumps({"rate": round(opened / (time.monotonic() - began))}), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    match sys.argv[1:]:
        case ["serve", rate]:
            serve(int(rate))
        case ["shout", transport, url]:
            shout(transport, url)
        case ["loiter", port]:
            loiter(int(port))
        case ["forge", port, rate, sources]:
            forge(int(port), int(rate), int(sources))
        case _:
            for figure in run():
                print(json.dumps(figure), flush=True)
