"""The stores on a real nats-server: what compare-and-set, listings, TTLs and durable changes promise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import ClusterInfo, StreamInfo

from tests.polling import eventually
from tipoff.up.embedded_nats import embedded_nats
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, LostRace, Removal
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.kv.changes import Change, Changes
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.records import SessionRecord, SessionState
from tipoff_shared.settings import NatsSettings


def record(key: str, owner: str = "m1") -> SessionRecord:
    return SessionRecord(key, SessionState.REQUESTED, "arena", "1", "7", owner, created_at=1.0)


async def test_stores_are_created_twice_without_harm(nats: Bus) -> None:
    """Every role creates the stores at start; the second time finds them."""
    await create_buckets(nats)
    await create_buckets(nats)


async def test_create_succeeds_once(nats: Bus) -> None:
    """Of many who create one key at once exactly one wins."""
    sessions = (await create_buckets(nats)).sessions
    results = await asyncio.gather(
        *(sessions.create("a", record("a", f"m{n}")) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(r, int) for r in results) == 1
    assert sum(isinstance(r, LostRace) for r in results) == 19


async def test_create_succeeds_over_a_delete_marker(nats: Bus) -> None:
    """A deleted key can be created again."""
    gameservers = (await create_buckets(nats)).connect_tokens
    await gameservers.create("a", "one")
    await gameservers.delete("a")
    assert await gameservers.get("a") is None
    await gameservers.create("a", "two")
    entry = await gameservers.get("a")
    assert entry is not None
    assert entry.value == "two"


async def test_update_with_an_old_revision_loses(nats: Bus) -> None:
    """Compare-and-set names the revision it saw."""
    sessions = (await create_buckets(nats)).sessions
    first = await sessions.create("a", record("a"))
    await sessions.update("a", record("a", "m2"), first)
    with pytest.raises(LostRace):
        await sessions.update("a", record("a", "m3"), first)


@pytest.mark.slow
async def test_list_is_complete_under_concurrent_writes(nats: Bus) -> None:
    """A key that exists during the whole call is in the listing, however much is written meanwhile."""
    sessions = (await create_buckets(nats)).sessions
    steady = {f"steady{n}" for n in range(50)}
    await asyncio.gather(*(sessions.create(key, record(key)) for key in steady))
    stop = asyncio.Event()

    async def churn() -> None:
        n = 0
        while not stop.is_set():
            await sessions.put(f"churn{n % 20}", record("c"))
            await sessions.put(f"steady{n % 50}", record("s"))
            await sessions.delete(f"churn{(n + 10) % 20}")
            n += 1

    writers = [asyncio.create_task(churn()) for _ in range(3)]
    try:
        for _ in range(30):
            assert steady <= set(await sessions.list())
    finally:
        stop.set()
        await asyncio.gather(*writers)


async def test_a_listing_counts_when_its_consumer_has_gone_before_its_end(
    nats: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a cluster whose new leader does not know it."""
    sessions = (await create_buckets(nats)).sessions
    await sessions.create("a", record("a"))
    delete = nats.js.delete_consumer

    async def gone_already(stream: str, consumer: str) -> bool:
        await delete(stream, consumer)
        return await delete(stream, consumer)

    monkeypatch.setattr(nats.js, "delete_consumer", gone_already)
    assert list(await sessions.list()) == ["a"]


@pytest.mark.row(96)
async def test_a_key_that_the_consumer_overlooks_for_a_moment_is_listed(
    nats: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a key is rewritten, the server counts neither revision of it: its "no messages" comes too early."""
    sessions = (await create_buckets(nats)).sessions
    await sessions.create("a", record("a"))
    publish, overlooked = nats.nc.publish, []

    async def overlook(subject: str, payload: bytes = b"", reply: str = "", **options: Any) -> None:
        if "CONSUMER.MSG.NEXT" in subject and not overlooked:
            overlooked.append(subject)
            await publish(reply, headers={"Status": "404"})
        else:
            await publish(subject, payload, reply, **options)

    monkeypatch.setattr(nats.nc, "publish", overlook)
    assert set(await sessions.list()) == {"a"}
    assert len(overlooked) == 1


async def test_list_of_an_empty_store_is_empty(nats: Bus) -> None:
    """Nothing there is an answer, not an error."""
    assert await (await create_buckets(nats)).sessions.list() == {}


async def test_the_current_entry_says_which_server_wrote_it(nats: Bus) -> None:
    store = (await create_buckets(nats)).active_connections
    await store.put("s1", "42", server="arena-1")
    await store.put("s2", "43")
    assert await store.latest("s1") == Change("s1", "42", 1, server="arena-1")
    assert await store.latest("s2") == Change("s2", "43", 2)


async def test_a_tombstone_says_why(nats: Bus) -> None:
    """Whatever the text, by each way of reading; a value has no such reason."""
    connections = (await create_buckets(nats)).active_connections
    why = "kicked: Zo\u00eb, 100 %: \U0001f600"
    await connections.put("a", "1")
    await connections.delete("a", why=why)
    await connections.put("b", "1")
    changed = await connections.change("b", lambda _: Removal.DELETE, why=why)
    assert changed.written
    async with connections.durable("reader") as reader:
        read = [change async for change in _all(reader, 2)]
    latest = await connections.list_latest()
    for key in ("a", "b"):
        single = await connections.latest(key)
        assert single is not None
        for change in (single, latest[key], *(change for change in read if change.key == key)):
            assert (change.value, change.why) == (None, why)
    await connections.put("a", "2")
    single = await connections.latest("a")
    assert single is not None
    assert (single.value, single.why) == ("2", "")


async def _all(reader: Changes[str], count: int) -> AsyncIterator[Change[str]]:
    while count > 0:
        for change, ack in await reader.fetch():
            await ack()
            count -= 1
            yield change


async def test_a_deleted_key_leaves_a_tombstone_until_it_is_forgotten(nats: Bus) -> None:
    """`get` and `list` see nothing; `latest` and `list_latest` see that something was there."""
    store = (await create_buckets(nats)).active_connections
    await store.put("s1", "42")
    await store.put("s2", "43")
    await store.delete("s1")
    assert await store.get("s1") is None
    assert list(await store.list()) == ["s2"]
    assert await store.latest("s1") == Change("s1", None, 3)
    assert await store.list_latest() == {"s1": Change("s1", None, 3), "s2": Change("s2", "43", 2)}
    await store.forget("s1", 3)
    assert await store.latest("s1") is None
    assert list(await store.list_latest()) == ["s2"]


@pytest.mark.parametrize("pattern", [">", "s1", "s9"])
async def test_a_listing_does_not_wait_for_a_newest_message_that_was_removed(nats: Bus, pattern: str) -> None:
    """The stream's last revision stays, although no message has it any longer."""
    store = (await create_buckets(nats)).active_connections
    await store.put("s1", "42")
    await store.put("s2", "43")
    await store.delete("s2")
    await store.forget("s2", 3)
    async with asyncio.timeout(3):
        assert list(await store.list(pattern)) == ([] if pattern == "s9" else ["s1"])


_CALLS: dict[str, Callable[[Bucket[SessionRecord]], Awaitable[object]]] = {
    "get": lambda bucket: bucket.get("a"),
    "latest": lambda bucket: bucket.latest("a"),
    "list": lambda bucket: bucket.list(),
    "create": lambda bucket: bucket.create("a", record("a")),
    "put": lambda bucket: bucket.put("a", record("a")),
    "update": lambda bucket: bucket.update("a", record("a"), 1),
    "delete": lambda bucket: bucket.delete("a"),
    "forget": lambda bucket: bucket.forget("a", 1),
    "watch": lambda bucket: bucket.watch().__aenter__(),
    "durable": lambda bucket: bucket.durable("reader").__aenter__(),
}


@pytest.mark.parametrize("call", _CALLS.values(), ids=_CALLS)
async def test_an_error_of_jetstream_is_unavailable(
    nats: Bus, call: Callable[[Bucket[SessionRecord]], Awaitable[object]]
) -> None:
    """No call raises JetStream's own error, which would count as a fault of ours: here its stream is missing."""
    sessions = (await create_buckets(nats)).sessions
    await nats.js.delete_stream(sessions.stream)
    with pytest.raises(Unavailable):
        await call(sessions)


async def test_a_listing_believes_no_node_without_a_leader(
    nats: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was stopped answers for the stream with what it has, until it hears who leads it."""
    sessions = (await create_buckets(nats)).sessions
    info = await nats.js.stream_info(sessions.stream)
    info.cluster = ClusterInfo(name="c", leader=None)

    async def stale(name: str) -> StreamInfo:
        return info

    monkeypatch.setattr(nats.js, "stream_info", stale)
    with pytest.raises(Unavailable, match="no leader"):
        await sessions.list()


async def test_listings_leave_no_consumer_behind(nats: Bus) -> None:
    """A listing cleans up after itself."""
    sessions = (await create_buckets(nats)).sessions
    await sessions.create("a", record("a"))
    await sessions.list()
    assert (await nats.js.stream_info(sessions.stream)).state.consumer_count == 0


async def test_durable_changes_wait_for_their_reader(nats: Bus) -> None:
    """What happens while nobody reads is told afterwards, a delete as None."""
    store = (await create_buckets(nats)).active_connections
    async with store.durable("reaper") as changes:
        await store.put("s1", "42")
        got = await changes.fetch()
        assert [(c.key, c.value) for c, _ in got] == [("s1", "42")]
        for _, ack in got:
            await ack()
    await store.delete("s1")
    async with store.durable("reaper") as changes:
        got = await changes.fetch()
        assert [(c.key, c.value) for c, _ in got] == [("s1", None)]


async def test_an_expired_lease_shows_as_a_change(nats: Bus) -> None:
    """A key whose TTL passes is told as expired, and reads as absent."""
    from tipoff_shared.messages import Transports
    from tipoff_shared.records import GameserverLease, LeaseState

    store = (await create_buckets(nats)).gameservers
    lease = GameserverLease("d1", "b1", "arena", "1", LeaseState.READY, Transports(), 8)
    async with store.watch() as changes:
        await store.put("d1", lease, ttl=1)
        seen: list[bool] = []
        async with asyncio.timeout(10):
            while len(seen) < 2:
                seen += [change.expired for change, _ in await changes.fetch(timeout=3)]
        assert seen == [False, True]
    assert await store.get("d1") is None
    await store.create("d1", lease, ttl=5)


async def test_two_namespaces_share_nothing(nats: Bus, settings: NatsSettings) -> None:
    """The same key in another namespace is another key."""
    import dataclasses

    await (await create_buckets(nats)).sessions.create("a", record("a"))
    other = dataclasses.replace(settings, namespace=settings.namespace + "x")
    async with connect(other, name="other") as bus:
        assert await (await create_buckets(bus)).sessions.get("a") is None


async def test_a_reader_that_ended_while_nats_was_away_leaves_no_subscription(tmp_path: Path) -> None:
    """nats-py would subscribe again after each outage, and what a server still has for that reader would go there."""
    async with embedded_nats(tmp_path) as server, connect(server.settings(), name="test") as bus:
        sessions = (await create_buckets(bus)).sessions
        before = set(bus.nc.subscriptions)
        async with sessions.watch(), sessions.durable("reader"):
            assert len(bus.nc.subscriptions) > len(before)
            await server.kill()
            await eventually(lambda: not bus.connected, "NATS is away", 5)
        assert set(bus.nc.subscriptions) - before == set()
