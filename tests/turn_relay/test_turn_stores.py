"""The contract of a store, kept by JetStream and by the one in memory alike."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tipoff.up.embedded_nats import embedded_nats
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import LostRace
from tipoff_shared.nats.connection import Bus, connect
from tipoff_turn_relay.store import Inbox, MemoryRecords, NatsRecords, RecordStore, Stored, StoreFull


async def test_what_was_never_written_has_no_value_and_revision_zero(store: RecordStore) -> None:
    assert await store.get("a") == Stored(None, 0)


async def test_one_reads_what_one_wrote(store: RecordStore) -> None:
    value = bytes(range(256))
    revision = await store.set("a", value, 0)
    assert await store.get("a") == Stored(value, revision)
    assert await store.get("b") == Stored(None, 0)


async def test_only_the_present_revision_can_be_replaced(store: RecordStore) -> None:
    first = await store.set("a", b"1", 0)
    second = await store.set("a", b"2", first)
    for stale in (0, first, second + 100):
        with pytest.raises(LostRace):
            await store.set("a", b"3", stale)
    assert await store.get("a") == Stored(b"2", second)


async def test_of_many_who_replace_the_same_revision_one_wins(store: RecordStore) -> None:
    results = await asyncio.gather(
        *(store.set("a", bytes([n]), 0) for n in range(20)), return_exceptions=True
    )
    winners = [n for n, result in enumerate(results) if isinstance(result, int)]
    assert len(winners) == 1
    assert (await store.get("a")).value == bytes(winners)


async def test_newer_is_what_was_written_since_and_else_nothing(store: RecordStore) -> None:
    first = await store.set("a", b"1", 0)
    assert await store.newer("a", first) is None
    await store.set("b", b"x", 0)
    assert await store.newer("a", first) is None
    second = await store.set("a", b"2", first)
    assert await store.newer("a", first) == Stored(b"2", second)
    assert await store.newer("a", second) is None


async def test_a_record_goes_after_its_time(store: RecordStore) -> None:
    revision = await store.set("a", b"1", 0, ttl=1)
    async with asyncio.timeout(5):
        while (await store.get("a")).value is not None:  # noqa: ASYNC110 # expiry announces itself to nobody
            await asyncio.sleep(0.1)
    with pytest.raises(LostRace):
        await store.set("a", b"2", revision)
    await store.set("a", b"2", 0)


async def test_who_watches_a_record_is_told_of_changes(store: RecordStore) -> None:
    told = asyncio.Event()
    async with store.changes("a", told.set):
        revision = await store.set("a", b"1", 0)
        async with asyncio.timeout(5):
            await told.wait()
        told.clear()
        await store.set("b", b"1", 0)
        await store.set("a", b"2", revision)
        async with asyncio.timeout(5):
            await told.wait()


async def test_a_full_memory_store_says_so() -> None:
    store = MemoryRecords(max_records=1)
    revision = await store.set("a", b"1", 0)
    with pytest.raises(StoreFull):
        await store.set("b", b"1", 0)
    await store.set("a", b"2", revision)


async def test_a_full_bucket_says_so_and_what_is_in_it_can_change(nats: Bus, nats_records: Any) -> None:
    async with nats_records(nats, "turn_small", max_records=1) as store:
        revision = await store.set("a", b"1", 0)
        with pytest.raises(StoreFull):
            await store.set("b", b"1", 0)
        await store.set("a", b"2", revision)


async def test_the_largest_record_can_be_kept(nats: Bus, nats_records: Any) -> None:
    async with nats_records(nats, "turn_large") as store:
        value = b"x" * 600_000
        await store.set("a", value, 0)
        assert (await store.get("a")).value == value


async def test_a_bucket_that_does_not_exist_is_unavailable_at_once(nats: Bus, nats_records: Any) -> None:
    async with nats_records(nats, "turn_test") as store:
        await nats.js.delete_stream(f"KV_{store.bucket}")
        with pytest.raises(Unavailable):
            async with asyncio.timeout(1):
                await store.get("a")
        with pytest.raises(Unavailable):
            async with asyncio.timeout(1):
                await store.set("a", b"1", 0)


async def test_what_is_on_its_way_fails_when_the_store_is_closed(nats: Bus, nats_records: Any) -> None:
    async with nats_records(nats, "turn_test") as store:
        asked = asyncio.ensure_future(store.get("a"))
        await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await asked
    with pytest.raises(Unavailable):
        await store.get("a")


async def test_without_permission_httpd_says_what_to_do(tmp_path: Path) -> None:
    """A denial by NATS is a time-out; its reason comes by another way."""
    async with embedded_nats(tmp_path) as server:
        config = tmp_path / "nats.conf"
        text = config.read_text()
        password = text.split("password: ")[1].split("\n")[0]
        text = text[: text.index("authorization")] + (
            f"authorization {{ users: [ {{ user: tipoff, password: {password}, permissions: {{ publish: "
            '{ deny: "$JS.API.STREAM.CREATE.>" } } } ] }\n'
        )
        config.write_text(text.replace("127.0.0.1:-1", f"127.0.0.1:{server.port}"))
        server.process.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.3)  # it reads its configuration again and tells nobody
        async with connect(server.settings(), name="test") as bus:
            bus.js._timeout = 0.5
            inbox = Inbox(bus)
            with pytest.raises(Unavailable, match="TIPOFF_HTTPD_TURN_RELAY=0"):
                await NatsRecords(bus, "turn_test", inbox).create_bucket("for a test", 10)
