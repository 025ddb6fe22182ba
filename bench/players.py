"""Makes the load of the benchmarks: cheap players that send a request by WebSocket and read until they have a token.

One connection is one `asyncio.Protocol`: the upgrade and the request are one write each, and answers are
scanned for their end. The caller decides how to use the seat.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit


class Player(asyncio.Protocol):
    """One play request; `done` becomes (seconds, last message) or an exception."""

    def __init__(self, host: str, game: str, version: str) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        self._head = (
            f"GET /matchmaker/ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        self._request = masked(json.dumps({"game": game, "version": version}).encode())
        self._buffer = b""
        self._upgraded = False
        self._began = time.perf_counter()
        self.done: asyncio.Future[tuple[float, dict[str, object]]] = (
            asyncio.get_running_loop().create_future()
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of that class
        self._transport.write(self._head + self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            if b" 101 " not in self._buffer[:20]:
                self._finish(error=f"no upgrade: {self._buffer[:60]!r}")
                return
            self._upgraded = True
            self._buffer = self._buffer[end + 4 :]
        while (frame := self._frame()) is not None:
            opcode, payload = frame
            if opcode == 1 and payload.startswith((b'{"SessionReady"', b'{"Error"')):
                self._finish(message=json.loads(payload))
            elif opcode == 8 and not self.done.done():
                self._finish(error="closed before an answer")

    def _frame(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1] & 127, 2
        if size == 126:
            if len(buffer) < 4:
                return None
            size, at = struct.unpack_from("!H", buffer, 2)[0], 4
        if len(buffer) < at + size:
            return None
        self._buffer = buffer[at + size :]
        return buffer[0] & 15, buffer[at : at + size]

    def _finish(self, message: dict[str, object] | None = None, error: str = "") -> None:
        if not self.done.done():
            if message is not None:
                self.done.set_result((time.perf_counter() - self._began, message))
            else:
                self.done.set_exception(RuntimeError(error))
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError(f"connection lost: {exc}"))


def masked(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame, with a mask of zeros, which costs nothing."""
    assert len(payload) < 126
    return bytes((0x80 | opcode, 0x80 | len(payload))) + b"\0\0\0\0" + payload


@dataclass
class Outcome:
    """The result: `seconds` of each answered play, sorted; `errors`: message -> number."""

    seconds: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    took: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.seconds) / self.took if self.took else 0.0

    def quantile(self, q: float) -> float:
        return self.seconds[min(len(self.seconds) - 1, int(q * len(self.seconds)))] if self.seconds else 0.0


async def play_many(url: str, game: str, version: str, *, plays: int, in_flight: int) -> Outcome:
    """Send `plays` requests, `in_flight` at a time, each as soon as another one is answered."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    loop = asyncio.get_running_loop()
    outcome = Outcome()
    left = plays

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            try:
                _, player = await loop.create_connection(
                    lambda: Player(f"{host}:{port}", game, version), host, port
                )
                async with asyncio.timeout(30):
                    seconds, message = await player.done
                if "SessionReady" in message:
                    outcome.seconds.append(seconds)
                    continue
                error = json.dumps(message)
            except (OSError, RuntimeError, TimeoutError) as exc:
                error = f"{type(exc).__name__}: {exc}"
            outcome.errors[error] = outcome.errors.get(error, 0) + 1

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())
    outcome.took = time.perf_counter() - began
    outcome.seconds.sort()
    return outcome
