"""Players like those of bevygap's client plugin: a token of the lightyear dialect, the address of `SessionReady`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tipoff.interop.udp_driver import UdpDriver, bind_udp
from tipoff_shared.messages import SessionReady
from tipoff_shared.netcode import (
    Address,
    Client,
    ClientEvent,
    ClientState,
    ConnectToken,
    Dialect,
    Payload,
    StateChanged,
)


class LightyearPlayer:
    def __init__(self, ready: SessionReady) -> None:
        self._loop = asyncio.get_running_loop()
        token = ConnectToken.decode(base64.b64decode(ready.token), Dialect.LIGHTYEAR)
        assert token.addresses == (Address(ready.ip, ready.port),)
        self.client = Client(token, now=self._loop.time())
        self._driver = UdpDriver(self.client, self._happened)
        self._received: asyncio.Queue[bytes] = asyncio.Queue()
        self._changed = asyncio.Event()

    async def open(self) -> None:
        await self._driver.open([bind_udp(Address("0.0.0.0", 0))])

    def _happened(self, event: ClientEvent) -> None:
        if isinstance(event, Payload):
            self._received.put_nowait(event.data)
        elif isinstance(event, StateChanged):
            self._changed.set()

    async def reaches(self, state: ClientState, timeout: float = 8) -> None:
        try:
            async with asyncio.timeout(timeout):
                while self.client.state is not state:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{self.client.state!r} after {timeout} s: {self.client.failure}") from None

    async def ask(self, question: bytes) -> bytes:
        """The server's answer; asked again where a datagram is lost."""
        for _ in range(5):
            assert self.client.send(question, self._loop.time())
            self._driver.pump()
            try:
                async with asyncio.timeout(1):
                    return await self._received.get()
            except TimeoutError:
                continue
        raise AssertionError(f"no answer to {question!r}")

    async def close(self) -> None:
        self.client.disconnect(self._loop.time())
        await self._driver.close()


@asynccontextmanager
async def playing(ready: SessionReady) -> AsyncIterator[LightyearPlayer]:
    """A connected player."""
    player = LightyearPlayer(ready)
    await player.open()
    try:
        await player.reaches(ClientState.CONNECTED)
        yield player
    finally:
        await player.close()
