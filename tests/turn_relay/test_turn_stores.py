"""The contract of the relay's buckets, kept by JetStream and by the one in memory alike."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.polling import eventually
from tipoff.up.embedded_nats import embedded_nats
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, Full, LostRace, codec_of
from tipoff_shared.kv.changes import Change
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.nats.errors import PermissionDenied
from tipoff_shared.settings import NatsSettings
from tipoff_turn_relay.store import MemoryBucket, Patience, RecordBucket, open_bucket


async def bytes_bucket(bus: Bus, name: str, max_records: int = 1000) -> Bucket[bytes]:
    """One of the relay's buckets, of bytes."""
    return await open_bucket(
        bus, name, bytes, codec_of(bytes), description="for a test", max_records=max_records
    )


@pytest.fixture(params=["memory", "nats"])
async def bucket(request: pytest.FixtureRequest, nats: Bus) -> RecordBucket[bytes]:
    """Both kinds of bucket, for the contract they share."""
    if request.param == "memory":
        return MemoryBucket(codec_of(bytes))
    return await bytes_bucket(nats, "turn_test")


async def test_what_was_never_written_is_not_there(bucket: RecordBucket[bytes]) -> None:
    assert await bucket.latest("a") is None


async def test_one_reads_what_one_wrote(bucket: RecordBucket[bytes]) -> None:
    value = bytes(range(256))
    revision = await bucket.update("a", value, 0)
    assert await bucket.latest("a") == Change("a", value, revision)
    assert await bucket.latest("b") is None


async def test_only_the_present_revision_can_be_replaced(bucket: RecordBucket[bytes]) -> None:
    first = await bucket.update("a", b"1", 0)
    second = await bucket.update("a", b"2", first)
    for stale in (0, first, second + 100):
        with pytest.raises(LostRace):
            await bucket.update("a", b"3", stale)
    assert await bucket.latest("a") == Change("a", b"2", second)


async def test_of_many_who_replace_the_same_revision_one_wins(bucket: RecordBucket[bytes]) -> None:
    results = await asyncio.gather(
        *(bucket.update("a", bytes([n]), 0) for n in range(20)), return_exceptions=True
    )
    winners = [n for n, result in enumerate(results) if isinstance(result, int)]
    assert len(winners) == 1
    latest = await bucket.latest("a")
    assert latest is not None
    assert latest.value == bytes(winners)


async def test_newer_is_what_was_written_since_and_else_nothing(bucket: RecordBucket[bytes]) -> None:
    first = await bucket.update("a", b"1", 0)
    assert await bucket.newer("a", first) is None
    await bucket.update("b", b"x", 0)
    assert await bucket.newer("a", first) is None
    second = await bucket.update("a", b"2", first)
    assert await bucket.newer("a", first) == Change("a", b"2", second)
    assert await bucket.newer("a", second) is None


async def test_a_record_goes_after_its_time(bucket: RecordBucket[bytes]) -> None:
    revision = await bucket.update("a", b"1", 0, ttl=1)

    async def expired() -> bool:
        return await bucket.latest("a") is None

    assert await eventually(expired, "the record expires", timeout=5)
    with pytest.raises(LostRace):
        await bucket.update("a", b"2", revision)
    await bucket.update("a", b"2", 0)


async def test_a_change_is_confirmed_by_what_is_newer(bucket: RecordBucket[bytes]) -> None:
    """What was known may be old: a change that writes nothing answers from the current value."""
    first = await bucket.change("a", lambda _: b"1")
    assert first.written
    await bucket.change("a", lambda _: b"2")
    seen: list[bytes | None] = []

    def look(value: bytes | None) -> None:
        seen.append(value)

    result = await bucket.change("a", look, known=first.entry, confirm_by_newer=True)
    assert seen == [b"1", b"2"]
    assert result.entry is not None
    assert (result.entry.value, result.written) == (b"2", False)
    assert await bucket.change("a", look, known=result.entry, confirm_by_newer=True) == result


async def test_who_refuses_a_write_keeps_it_from_being_made(bucket: RecordBucket[bytes]) -> None:
    async def refuse() -> None:
        raise PermissionError

    await bucket.change("a", lambda _: b"1")
    with pytest.raises(PermissionError):
        await bucket.change("a", lambda _: b"2", before_write=refuse)
    assert not (await bucket.change("a", lambda _: None, before_write=refuse)).written
    latest = await bucket.latest("a")
    assert latest is not None
    assert latest.value == b"1"


async def test_who_watches_a_record_is_told_of_changes(bucket: RecordBucket[bytes]) -> None:
    told = asyncio.Event()
    async with bucket.listen("a", told.set):
        revision = await bucket.update("a", b"1", 0)
        async with asyncio.timeout(5):
            await told.wait()
        told.clear()
        await bucket.update("b", b"1", 0)
        await bucket.update("a", b"2", revision)
        async with asyncio.timeout(5):
            await told.wait()


async def test_patience_counts_from_the_first_failure_and_ends_with_the_last() -> None:
    """The first try after a failure comes at once, later ones after a pause; then the last failure is raised."""
    patience = Patience(MemoryBucket(codec_of(bytes)), 0.2)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(0.1)  # the time before does not count
    began = loop.time()
    await patience.after(Unavailable("first"))
    assert loop.time() - began < 0.04
    tries = 0

    async def try_again() -> None:
        nonlocal tries
        while True:
            tries += 1
            await patience.after(Unavailable(f"failure {tries}"))

    with pytest.raises(Unavailable) as raised:
        await try_again()
    assert str(raised.value) == f"failure {tries}"
    assert 3 <= tries <= 5
    assert raised.value.retry_after == 1
    assert 0.2 <= loop.time() - began < 0.5


async def test_a_denied_bucket_is_told_as_such() -> None:
    """So that the operator is told, and the player is not sent away to try again."""
    denied = PermissionDenied("$KV.turn_games.>", "httpd")
    with pytest.raises(PermissionDenied) as raised:
        await Patience(MemoryBucket(codec_of(bytes)), 0).after(denied)
    assert raised.value is denied


async def test_a_full_memory_bucket_says_so() -> None:
    bucket = MemoryBucket(codec_of(bytes), max_records=1)
    revision = await bucket.update("a", b"1", 0)
    with pytest.raises(Full):
        await bucket.update("b", b"1", 0)
    await bucket.update("a", b"2", revision)


async def test_a_full_bucket_says_so_and_what_is_in_it_can_change(nats: Bus) -> None:
    bucket = await bytes_bucket(nats, "turn_small", max_records=1)
    revision = await bucket.update("a", b"1", 0)
    with pytest.raises(Full):
        await bucket.update("b", b"1", 0)
    await bucket.update("a", b"2", revision)


async def test_the_largest_record_can_be_kept(nats: Bus) -> None:
    bucket = await bytes_bucket(nats, "turn_large")
    value = b"x" * 600_000
    revision = await bucket.update("a", value, 0)
    assert await bucket.latest("a") == Change("a", value, revision)


async def test_a_bucket_that_does_not_exist_is_unavailable_at_once(nats: Bus) -> None:
    bucket = await bytes_bucket(nats, "turn_test")
    await nats.js.delete_stream(bucket.stream)
    with pytest.raises(Unavailable):
        async with asyncio.timeout(1):
            await bucket.latest("a")
    with pytest.raises(Unavailable):
        async with asyncio.timeout(1):
            await bucket.update("a", b"1", 0)


async def test_what_is_on_its_way_fails_when_the_connection_is_closed(settings: NatsSettings) -> None:
    async with connect(settings, name="test") as bus:
        bucket = await bytes_bucket(bus, "turn_test")
        asked = asyncio.ensure_future(bucket.latest("a"))
        await asyncio.sleep(0)
        bus.nc.abort()
    with pytest.raises(Unavailable):
        async with asyncio.timeout(1):
            await asked
    with pytest.raises(Unavailable):
        await bucket.latest("a")
    assert not await bucket.wait_reachable(5)


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
            with pytest.raises(Unavailable, match="TIPOFF_HTTPD_TURN_RELAY=0"):
                async with asyncio.timeout(2):
                    await bytes_bucket(bus, "turn_test", 10)
