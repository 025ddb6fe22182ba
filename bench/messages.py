"""Measures reliable and long messages: what they cost beside plain ones, and how fast they come.

Time and bytes per message are those of both sides together, in memory (the channel alone, without netcode's 18 to 25
bytes per packet). The rates are of a real game server and one client of the SDK, in one process, on loopback: they
share a core. `bench gameserver` measures the plain path.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from tipoff_client_sdk import Transport, connect
from tipoff_gameserver import Game, GameServer, Player
from tipoff_shared.framing import MAX_MESSAGE_BYTES, MessageChannel

SMALL = bytes(100)
LARGE = bytes(MAX_MESSAGE_BYTES)
SECONDS = 2.0
TOTAL = 16 << 20
"""Bytes that are sent for a rate."""


def run() -> Iterator[dict[str, object]]:
    """Yield the figures; `bench` prints them."""
    for what, message, burst in (
        ("100 bytes, one at a time", SMALL, 1),
        ("100 bytes, ten at a time", SMALL, 10),
        ("64 KiB", LARGE, 1),
    ):
        micros, extra = _in_memory(message, burst)
        yield {"figure": f"reliable, {what}: CPU time per message", "value": round(micros, 1), "unit": "µs"}
        yield {"figure": f"reliable, {what}: bytes beside it", "value": round(extra, 1), "unit": "bytes"}
    for transport in ("udp", "websocket"):
        rate = asyncio.run(_rate(transport))
        yield {
            "figure": f"reliable, 64 KiB to a player, {transport}",
            "value": round(rate, 1),
            "unit": "MB/s",
        }


def _in_memory(message: bytes, burst: int) -> tuple[float, float]:
    """Microseconds per message for both sides, and bytes per message besides its own."""
    one, other = MessageChannel(), MessageChannel()
    now, sent, size = 0.0, 0, 0
    began = time.process_time()
    while time.process_time() - began < SECONDS / 2:
        for _ in range(burst):
            assert one.send(message)
        while not one.idle:
            now += 0.02  # a turn of a game at 50 Hz: every frame is acknowledged by itself
            for frame in one.frames(now):
                size += len(frame)
                other.receive(frame, now)
            while other.next_message(now) is not None:
                sent += 1
            for frame in other.frames(now):
                size += len(frame)
                one.receive(frame, now)
    return (time.process_time() - began) / sent * 1e6, size / sent - len(message)


class _Source(Game):
    """Sends as many bytes as it is asked for, as fast as they are taken."""

    def on_message(self, player: Player, data: bytes) -> None:
        for _ in range(int(data)):
            player.send(LARGE, reliable=True)


async def _rate(transport: Transport) -> float:
    async with (
        GameServer(_Source(), stand_alone=True, listen="127.0.0.1:0") as server,
        connect(server.url, game="bench", version="1", transports=[transport]) as player,
    ):
        began = time.perf_counter()
        for _ in range(TOTAL // MAX_MESSAGE_BYTES // 8):
            await player.send(b"8", reliable=True)
            for _ in range(8):
                await player.receive()
        return TOTAL / (time.perf_counter() - began) / 1e6
