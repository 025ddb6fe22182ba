"""Measures the CPU share of a game server whose players all send and receive at its tick rate.

The server runs in its own process and measures its own CPU time (user and system) against the clock while all
players are there; the players live in this process. Each sends an input of 12 bytes and receives a snapshot of 500
bytes 60 times a second, at its own moments, as players do. The game computes nothing, so the figures show
netcode (or WebSocket) and I/O.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from websockets.asyncio.client import ClientConnection, connect

from tipoff_gameserver import Game, GameServer, Player
from tipoff_shared.messages import SessionReady, decode_feedback
from tipoff_shared.netcode import Address, Client, ClientState, ConnectToken

PLAYERS = 64
RATE = 60
INPUT = bytes(12)
SNAPSHOT = bytes(500)
SECONDS = 6.0
_TURN = 0.001


def run() -> Iterator[dict[str, object]]:
    """Yield the figures; `bench` prints them."""
    for transport in ("udp", "websocket"):
        yield from _measure(transport)


def _measure(transport: str) -> Iterator[dict[str, object]]:
    server = subprocess.Popen(
        [sys.executable, "-m", "bench.gameserver", "serve"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TIPOFF_LOG_LEVEL": "WARNING"},
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        asyncio.run(_play_by_udp(url) if transport == "udp" else _play_by_websocket(url))
        seen = json.loads(server.stdout.readline())
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
    what = f"{PLAYERS} players at {RATE} Hz, {'UDP' if transport == 'udp' else 'WebSocket'}"
    yield {"figure": f"CPU share of {what}", "value": seen["cpu"], "unit": "cores"}
    yield {"figure": f"messages in, {what}", "value": seen["messages"], "unit": "1/s"}
    yield {"figure": f"ticks, {what}", "value": seen["ticks"], "unit": "1/s"}


class _Busy(Game):
    """Measures while all players are connected, then prints and ends."""

    tick_rate = RATE

    def __init__(self) -> None:
        self.messages = 0
        self.began: tuple[float, float, int, int] | None = None

    def on_start(self, server: GameServer) -> None:
        print(server.url, flush=True)

    def on_message(self, player: Player, data: bytes) -> None:
        self.messages += 1

    def tick(self, server: GameServer, dt: float) -> None:
        server.broadcast(SNAPSHOT)
        now = (time.perf_counter(), time.process_time(), self.messages, server.ticks)
        if self.began is None:
            if len(server.players) == PLAYERS and self.messages > PLAYERS * RATE:  # everybody is up to speed
                self.began = now
        elif now[0] - self.began[0] > SECONDS:
            wall, cpu, messages, ticks = (
                after - before for after, before in zip(now, self.began, strict=True)
            )
            figures = {"cpu": cpu / wall, "messages": messages / wall, "ticks": ticks / wall}
            print(json.dumps({name: round(value, 3) for name, value in figures.items()}), flush=True)
            server.shutdown("measured")


def serve() -> None:
    GameServer(_Busy(), stand_alone=True, listen="127.0.0.1:0", capacity=PLAYERS).main()


async def tokens(url: str, players: int) -> list[SessionReady]:
    """Answers of a stand-alone server's matchmaker, one for each of `players`."""
    found: list[SessionReady] = []
    for _ in range(players):
        async with connect(url) as ws:
            await ws.send('{"game": "bench", "version": "1"}')
            async for message in ws:
                feedback = decode_feedback(message)
                if isinstance(feedback, SessionReady):
                    found.append(feedback)
    return found


async def _play_by_udp(url: str) -> None:
    """All players in one loop that turns every millisecond; ends when the server ends."""
    players = []
    now = time.monotonic()
    for ready in await tokens(url, PLAYERS):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        client = Client(ConnectToken.from_base64(ready.token), now=now)
        players.append((sock, client, [now + random.random() / RATE]))  # a phase, no secret
    while any(client.state >= ClientState.SENDING_CONNECTION_REQUEST for _, client, _ in players):
        now = time.monotonic()
        for sock, client, due in players:
            try:
                while True:
                    data, peer = sock.recvfrom(2048)
                    client.receive_datagram(data, Address.from_socket(peer), now)
            except (BlockingIOError, ConnectionError):
                pass
            if now >= due[0] and client.send(INPUT, now):
                due[0] += 1 / RATE
            client.update(now)
            for data, address in client.datagrams_to_send():
                sock.sendto(data, address)
            client.events()
        time.sleep(max(0.0, now + _TURN - time.monotonic()))  # noqa: ASYNC251  # nothing else runs in this process
    for sock, _, _ in players:
        sock.close()


async def _play_by_websocket(url: str) -> None:
    async def play(ready: SessionReady) -> None:
        assert ready.transports.websocket is not None
        async with connect(ready.transports.websocket.url, compression=None) as ws:
            await ws.send(base64.b64decode(ready.token))
            sender = asyncio.create_task(_send_inputs(ws))
            async for _ in ws:
                pass
            sender.cancel()

    await asyncio.gather(*(play(ready) for ready in await tokens(url, PLAYERS)))


async def _send_inputs(ws: ClientConnection) -> None:
    loop = asyncio.get_running_loop()
    due = loop.time() + random.random() / RATE  # a phase, no secret
    while True:
        await asyncio.sleep(max(0.0, due - loop.time()))
        due += 1 / RATE
        await ws.send(INPUT)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    else:
        for figure in run():
            print(json.dumps(figure), flush=True)
