"""A TCP link between a client and a server that a test can cut, freeze or let go: what networks do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from tipoff_shared.settings import NatsSettings


class Link:
    """Forwards both ways. `freeze`: connections stay open, new ones are accepted, and no byte comes through (a
    half-open link); what is sent meanwhile waits, and arrives after `thaw`, late."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    def lose_what_waits(self) -> None:
        """Cut all connections; what was frozen is lost."""
        for writer in self._writers:
            writer.transport.abort()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.lose_what_waits()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # in which aborted sockets close

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._open.wait()
            there_reader, there = await asyncio.open_connection(*self._target)
            self._writers.add(there)
            try:
                await asyncio.gather(self._forward(reader, there), self._forward(there_reader, writer))
            finally:
                self._writers.discard(there)
                there.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.transport.abort()

    async def _forward(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                await self._open.wait()  # frozen: nothing is even read, as by a peer that is gone
                data = await source.read(65536)
                await self._open.wait()
                if not data:
                    break
                target.write(data)
                await target.drain()
        target.transport.abort()


@asynccontextmanager
async def link_to(settings: NatsSettings) -> AsyncIterator[tuple[Link, NatsSettings]]:
    """A link to the (first) server of these settings, and the settings by which one goes through it."""
    host, _, port = settings.servers[0].removeprefix("nats://").rpartition(":")
    link = Link(host, int(port))
    await link.start()
    try:
        yield link, replace(settings, servers=(f"nats://127.0.0.1:{link.port}",))
    finally:
        await link.close()
