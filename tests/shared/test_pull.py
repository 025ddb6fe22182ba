"""Pull consumers: messages are returned as they arrive, and nothing is lost on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from nats.aio.msg import Msg
from nats.js import api

from tests.polling import eventually
from tipoff.up.embedded_nats import embedded_nats
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.nats.jetstream import acknowledge, read_stream
from tipoff_shared.nats.pull import PullReader, pull_reader

Heard: TypeAlias = "asyncio.Queue[str]"


@asynccontextmanager
async def _watching(bus: Bus) -> AsyncIterator[Heard]:
    heard: Heard = asyncio.Queue()

    async def read() -> None:
        async with (await create_buckets(bus)).cert_digests.watch() as changes:
            while True:
                for change, ack in await changes.fetch():
                    heard.put_nowait(change.key)
                    await ack()

    async with _running(read):
        yield heard


@asynccontextmanager
async def _sharing(bus: Bus) -> AsyncIterator[Heard]:
    heard: Heard = asyncio.Queue()

    async def read() -> None:
        async with (await create_buckets(bus)).cert_digests.durable("reader") as changes:
            while True:
                for change, ack in await changes.fetch():
                    heard.put_nowait(change.key)
                    await ack()

    async with _running(read), _running(read):  # two readers of one consumer
        yield heard


@asynccontextmanager
async def _reading(bus: Bus) -> AsyncIterator[Heard]:
    heard: Heard = asyncio.Queue()
    stream = (await create_buckets(bus)).cert_digests.stream
    config = api.ConsumerConfig(durable_name="reader", ack_policy=api.AckPolicy.EXPLICIT)

    async def handle(messages: list[Msg]) -> None:
        for msg in messages:
            heard.put_nowait(msg.subject.rpartition(".")[2])
            await acknowledge(msg)

    async def read() -> None:
        await read_stream(bus, stream, config, handle, batch=100, wait=5)

    async with _running(read):
        yield heard


@asynccontextmanager
async def _running(read: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    task = asyncio.create_task(read())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task  # raises why it ended, if it did


@pytest.mark.row(86)
@pytest.mark.parametrize("reader", [_watching, _sharing, _reading])
async def test_a_change_shortly_after_another_is_heard_at_once(
    nats: Bus, reader: Callable[[Bus], AbstractAsyncContextManager[Heard]]
) -> None:
    """Not at the end of a batch that is not full, which would be seconds later."""
    bucket = (await create_buckets(nats)).cert_digests
    async with reader(nats) as heard:
        for pause in (0.0, 0.0, 0.2, 0.05, 0.3):
            await asyncio.sleep(pause)  # the time between two changes is what is tested
            key = f"k{time.time_ns()}"
            await bucket.put(key, "digest")
            assert await asyncio.wait_for(heard.get(), 2) == key


@asynccontextmanager
async def _reader(bus: Bus) -> AsyncIterator[tuple[PullReader, Callable[[str], Awaitable[object]]]]:
    """A reader of a new consumer, and a function that writes a key for it."""
    bucket = (await create_buckets(bus)).cert_digests
    config = api.ConsumerConfig(durable_name="reader", ack_policy=api.AckPolicy.EXPLICIT)
    await bus.js.add_consumer(bucket.stream, config)
    async with pull_reader(bus, bucket.stream, "reader") as reader:
        yield reader, lambda key: bucket.put(key, "digest")


def _keys(messages: list[Msg]) -> list[str]:
    return [msg.subject.rpartition(".")[2] for msg in messages]


async def test_what_is_more_than_a_batch_comes_with_the_next(nats: Bus) -> None:
    async with _reader(nats) as (reader, write):
        keys = [f"k{number}" for number in range(7)]
        for key in keys:
            await write(key)
        found: list[str] = []
        while len(found) < 7:
            batch = _keys(await reader.fetch(3, 2))
            assert 1 <= len(batch) <= 3
            found += batch
        assert found == keys


async def test_without_a_message_a_fetch_ends_in_time_and_the_next_one_hears(nats: Bus) -> None:
    async with _reader(nats) as (reader, write):
        for _ in range(3):
            assert await reader.fetch(10, 0.05) == []
        await write("k")
        assert _keys(await reader.fetch(10, 2)) == ["k"]


async def test_a_cancelled_fetch_loses_nothing(nats: Bus) -> None:
    async with _reader(nats) as (reader, write):
        waiting = asyncio.create_task(reader.fetch(10, 5))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert waiting.cancelled()
        await write("k")
        assert _keys(await reader.fetch(10, 2)) == ["k"]


async def test_a_consumer_that_is_removed_is_said(nats: Bus) -> None:
    async with _reader(nats) as (reader, _):
        waiting = asyncio.create_task(reader.fetch(10, 5))
        await nats.flush()
        await nats.js.delete_consumer((await create_buckets(nats)).cert_digests.stream, "reader")
        with pytest.raises(Unavailable, match="Consumer Deleted"):
            await waiting
        with pytest.raises(Unavailable, match="nobody serves"):
            await reader.fetch(10, 2)


async def test_a_reader_hears_at_once_that_nats_is_away_and_reads_on_when_it_is_back(tmp_path: Path) -> None:
    async with (
        embedded_nats(tmp_path) as server,
        connect(server.settings(), name="test") as bus,
        _reader(bus) as (reader, write),
    ):
        waiting = asyncio.create_task(reader.fetch(10, 60))
        await bus.flush()
        await server.kill()
        with pytest.raises(Unavailable):
            await asyncio.wait_for(waiting, 5)
        await server.start()
        await eventually(lambda: bus.connected, "NATS is back")
        await write("k")
        assert _keys(await reader.fetch(10, 5)) == ["k"]
