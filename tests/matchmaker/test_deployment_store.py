"""The deployment store on real NATS: many changes in one write, nothing promised twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import msgspec
import pytest

from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord, NoSeat
from tipoff_matchmaker.seats.rules import leave, take
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Entry, LostRace
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState

RECORD = DeploymentRecord("d1", DeploymentState.READY, "arena", "1", "fake", 10, created_at=0.0)


@pytest.fixture
async def buckets(nats: Bus) -> Buckets:
    return await create_buckets(nats)


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    async with Tasks("test") as tasks:
        yield tasks


async def test_what_waits_at_one_moment_is_one_write(buckets: Buckets, tasks: Tasks) -> None:
    """Ten changes, one or two revisions."""
    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(RECORD)
    first = store.entries["d1"].revision
    await asyncio.gather(
        *(store.change("d1", partial(take, members=(f"s{n}",), until=9.0)) for n in range(10))
    )
    entry = await buckets.deployments.get("d1")
    assert entry is not None
    assert len(entry.value.seats) == 10
    assert entry.revision - first <= 2


async def test_several_writers_never_overfill_a_server(buckets: Buckets, tasks: Tasks) -> None:
    """Three matchmakers, sixty players, ten seats: ten get one, fifty are refused."""
    stores = [DeploymentStore(buckets.deployments, tasks) for _ in range(3)]
    await stores[0].create(RECORD)
    outcomes = await asyncio.gather(
        *(stores[n % 3].change("d1", partial(take, members=(f"s{n}",), until=9.0)) for n in range(60)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, DeploymentRecord) for outcome in outcomes) == 10
    assert sum(isinstance(outcome, NoSeat) for outcome in outcomes) == 50
    entry = await buckets.deployments.get("d1")
    assert entry is not None
    assert len(entry.value.seats) == 10


async def test_a_refusal_is_never_based_on_old_news(buckets: Buckets, tasks: Tasks) -> None:
    """Full as far as this process knows; somebody else has freed a seat."""
    store, other = DeploymentStore(buckets.deployments, tasks), DeploymentStore(buckets.deployments, tasks)
    await store.create(msgspec.structs.replace(RECORD, capacity=1, seats={"a": 9.0}))
    await other.change("d1", lambda record: leave(record, ("a",), 1.0))
    record = await store.change("d1", partial(take, members=("b",), until=9.0))
    assert list(record.seats) == ["b"]


async def test_nothing_is_written_when_nothing_changes(buckets: Buckets, tasks: Tasks) -> None:
    """The same object back means no write."""
    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(RECORD)
    before = store.entries["d1"].revision
    assert await store.change("d1", lambda record: record) == RECORD
    entry = await buckets.deployments.get("d1")
    assert entry is not None
    assert entry.revision == before


async def test_a_record_that_is_not_there_is_said_to_be_missing(buckets: Buckets, tasks: Tasks) -> None:
    """Never there, or deleted under us: listeners hear that it is gone."""
    store = DeploymentStore(buckets.deployments, tasks)
    heard: list[DeploymentState] = []
    store.subscribe(lambda before, after: heard.append(after.state))
    with pytest.raises(NoRecord):
        await store.change("d9", lambda record: record)
    await store.create(RECORD)
    await buckets.deployments.delete("d1")
    with pytest.raises(NoRecord):
        await store.change("d1", partial(take, members=("a",), until=9.0))
    assert heard == [DeploymentState.READY, DeploymentState.GONE]
    assert store.get("d1") is None


async def test_older_news_are_ignored(buckets: Buckets, tasks: Tasks) -> None:
    """A watch may be behind our own writes."""
    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(RECORD)
    revision = store.entries["d1"].revision
    store.observe(Entry("d1", msgspec.structs.replace(RECORD, capacity=99), revision - 1))
    assert store.get("d1") == RECORD


async def test_one_whose_asker_has_gone_is_not_applied(buckets: Buckets, tasks: Tasks) -> None:
    """A cancelled claim takes no seat."""
    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(RECORD)
    first = store.change("d1", partial(take, members=("a",), until=9.0))
    second = store.change("d1", partial(take, members=("b",), until=9.0))
    second.cancel()
    assert list((await first).seats) == ["a"]


class _Flaky:
    """A store whose next write is stored, but answered by a time-out."""

    def __init__(self, buckets: Buckets) -> None:
        self._store = buckets.deployments
        self.lose = False

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def update(
        self, key: str, value: DeploymentRecord, revision: int, *, ttl: float | None = None
    ) -> int:
        written = await self._store.update(key, value, revision, ttl=ttl)
        if self.lose:
            self.lose = False
            raise Unavailable("no answer")
        return written


async def test_after_an_unknown_outcome_the_record_is_read_first(buckets: Buckets, tasks: Tasks) -> None:
    """The write may have happened: the next change starts from what is there."""
    flaky = _Flaky(buckets)
    store = DeploymentStore(flaky, tasks)  # type: ignore[arg-type] # stands in for the store
    await store.create(RECORD)
    flaky.lose = True
    with pytest.raises(Unavailable):
        await store.change("d1", partial(take, members=("a",), until=9.0))
    record = await store.change("d1", partial(take, members=("b",), until=9.0))
    assert sorted(record.seats) == ["a", "b"]


async def test_a_gone_record_is_forgotten_and_expires(nats: Bus, buckets: Buckets, tasks: Tasks) -> None:
    """It stays for a while, for those who look, and then goes by itself."""
    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(RECORD)
    await store.change("d1", lambda record: msgspec.structs.replace(record, state=DeploymentState.GONE))
    assert store.get("d1") is None
    raw = await nats.js.get_last_msg(buckets.deployments.stream, f"$KV.{buckets.deployments.bucket}.d1")
    assert (raw.headers or {})["Nats-TTL"] == "60"


async def test_create_wins_once(buckets: Buckets, tasks: Tasks) -> None:
    """A deployment id is used once."""
    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(RECORD)
    with pytest.raises(LostRace):
        await store.create(RECORD)
