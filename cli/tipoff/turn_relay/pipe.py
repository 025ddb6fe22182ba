"""Connects two programs for `tipoff relay`: standard input goes to the partner's standard output, in both directions.

Any bytes pass: an update is base64 behind `b:`, the end of the input is an empty update. With half-close: it ends when
both inputs have ended and everything has arrived.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import threading
from collections.abc import Callable
from typing import Protocol

from tipoff.turn_relay.client import TurnClient, TurnRefused
from tipoff_shared.errors import TipoffError
from tipoff_turn_relay.messages import Error

CHUNK = 8192
"""Bytes of input in one update, at most; 11 KB as base64."""
_PREFIX = "b:"
_END = ""


class Input(Protocol):
    """What `relay` reads from."""

    async def read(self) -> bytes:
        """At most `CHUNK` bytes as soon as there are some; b"" at the end."""
        ...


class FileInput:
    """A file descriptor, read by a thread: standard input may be a file, which no event loop can watch."""

    def __init__(self, fd: int) -> None:
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4)
        self._loop = asyncio.get_running_loop()
        # A daemon: nothing wakes a thread that waits for a terminal, and the process must be able to end.
        threading.Thread(target=self._pump, args=(fd,), daemon=True, name="relay input").start()

    def _pump(self, fd: int) -> None:
        try:
            while chunk := os.read(fd, CHUNK):
                asyncio.run_coroutine_threadsafe(self._chunks.put(chunk), self._loop).result()
        except OSError:
            pass  # a terminal that is gone: the same as its end
        except RuntimeError:
            return  # the loop has ended, and with it the reader
        asyncio.run_coroutine_threadsafe(self._chunks.put(b""), self._loop)

    async def read(self) -> bytes:
        """As `Input.read`."""
        return await self._chunks.get()


async def relay(
    client: TurnClient,
    name: str,
    partner: str | None,
    source: Input,
    write: Callable[[bytes], None],
    say: Callable[[str], None],
) -> bool:
    """Pair, then relay until both inputs have ended; False when the partner left before.

    Raises `TipoffError` when the relay refuses or is away for too long, and the `OSError` of a `write`. Cancelling
    leaves the list or the game.
    """
    playing = False
    try:
        partner_name = await client.join(name, partner)
        playing = True
        say(f"paired with {printable(partner_name)}")
        failure: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_send(client, source))
                both.create_task(_receive(client, write))
        except* (TipoffError, OSError) as group:
            failure = group.exceptions[0]
        if isinstance(failure, TurnRefused) and failure.error in (Error.PARTNER_GONE, Error.NO_GAME):
            say("the partner is gone")
            return False
        if failure is not None:
            raise failure
        return True
    finally:
        try:
            async with asyncio.timeout(2):
                await client.leave(playing=playing)
        except (TipoffError, TimeoutError):
            pass  # the relay drops a silent player


async def _send(client: TurnClient, source: Input) -> None:
    while chunk := await source.read():
        await client.send(_PREFIX + base64.b64encode(chunk).decode())
    await client.send(_END)


async def _receive(client: TurnClient, write: Callable[[bytes], None]) -> None:
    while True:
        for update in await client.receive():
            if update == _END:
                return
            write(decode(update))


def decode(update: str) -> bytes:
    """The bytes of an update; one that another program handed over is a line of text."""
    if update.startswith(_PREFIX):
        try:
            return base64.b64decode(update.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            pass
    return update.encode() + b"\n"


def printable(name: str) -> str:
    """A name from somebody else, without what a terminal obeys."""
    return "".join(char if char.isprintable() else "?" for char in name)
