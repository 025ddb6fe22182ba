"""The deployment store on real NATS: many changes in one write, nothing promised twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import msgspec
import pytest

from tests.polling import eventually
from tipoff_matchmaker.deployments.fleet_limit import FleetLimit, fleet_key
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.errors import NoRecord, NoSeat
from tipoff_matchmaker.seats.rules import leave, take
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Entry, Full, LostRace
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.messages import Transports, UdpAddress
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


class Heard:
    """What the listeners of a store hear: the id, and the states before and after."""

    def __init__(self, store: DeploymentStore) -> None:
        self.all: list[tuple[str, str, str]] = []
        self.states: list[tuple[str, str, str]] = []
        store.subscribe(partial(self._hear, self.all))
        store.subscribe_states(partial(self._hear, self.states))

    def _hear(
        self, heard: list[tuple[str, str, str]], before: DeploymentRecord | None, after: DeploymentRecord
    ) -> None:
        assert before is None or before.id == after.id
        heard.append((after.id, "unknown" if before is None else before.state.value, after.state.value))

    def take(self) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
        """What was heard since the last time: of every change, and of states only."""
        taken = sorted(self.all), sorted(self.states)
        self.all.clear()
        self.states.clear()
        return taken


async def test_listeners_hear_each_change_and_others_only_of_states(buckets: Buckets, tasks: Tasks) -> None:
    """A seat is no new state; a record that is new, stops or vanishes has one."""
    store = DeploymentStore(buckets.deployments, tasks)
    heard = Heard(store)
    await store.create(RECORD)
    assert heard.take() == ([("d1", "unknown", "ready")], [("d1", "unknown", "ready")])
    await store.change("d1", partial(take, members=("a",), until=9.0))
    assert heard.take() == ([("d1", "ready", "ready")], [])
    assert store.get("d1") is not None
    store.observe(store.entries["d1"])
    assert heard.take() == ([], []), "nothing new"
    stopping = DeploymentState.STOPPING
    await store.change("d1", lambda record: msgspec.structs.replace(record, state=stopping))
    assert heard.take() == ([("d1", "ready", "stopping")], [("d1", "ready", "stopping")])
    store.forget_all()
    store.forget_all()
    store.vanished("d1")
    assert heard.take() == ([("d1", "stopping", "gone")], [("d1", "stopping", "gone")])
    assert store.get("d1") is None


async def test_records_are_known_by_game_and_version(buckets: Buckets, tasks: Tasks) -> None:
    store = DeploymentStore(buckets.deployments, tasks)
    for id, game, version in (("d1", "arena", "1"), ("d2", "arena", "2"), ("d3", "chess", "1")):
        await store.create(msgspec.structs.replace(RECORD, id=id, game=game, version=version))
    assert [record.id for record in store.of("arena", "1")] == ["d1"]
    assert store.of("chess", "2") == []


async def test_a_listing_teaches_what_others_wrote_and_deleted(
    buckets: Buckets, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process created while the listing was on its way is no deleted record."""
    store, other = DeploymentStore(buckets.deployments, tasks), DeploymentStore(buckets.deployments, tasks)
    for id in ("d1", "d2", "d3"):
        await store.create(msgspec.structs.replace(RECORD, id=id))
    await buckets.deployments.delete("d1")
    await other.change("d2", partial(take, members=("a",), until=9.0))
    await other.create(msgspec.structs.replace(RECORD, id="d4"))
    heard = Heard(store)
    listing = buckets.deployments.list

    async def meanwhile() -> dict[str, Entry[DeploymentRecord]]:
        listed = await listing()
        del listed["d3"]  # it came after the listing was made: so its change is newer than what was known
        await store.change("d3", partial(take, members=("b",), until=9.0))
        await store.create(msgspec.structs.replace(RECORD, id="d5"))
        return listed

    monkeypatch.setattr(buckets.deployments, "list", meanwhile)
    listed = await store.refresh()
    assert sorted(listed) == ["d2", "d4"]
    assert list(listed["d2"].seats) == ["a"]
    assert sorted(store.entries) == ["d2", "d3", "d4", "d5"]
    new, states = heard.take()
    assert ("d1", "ready", "gone") in new
    assert states == [("d1", "ready", "gone"), ("d4", "unknown", "ready"), ("d5", "unknown", "ready")]


async def test_a_read_teaches_what_is_there_and_that_nothing_is(buckets: Buckets, tasks: Tasks) -> None:
    store, other = DeploymentStore(buckets.deployments, tasks), DeploymentStore(buckets.deployments, tasks)
    await other.create(RECORD)
    heard = Heard(store)
    assert await store.fetch("d1") == RECORD
    assert store.get("d1") == RECORD
    await buckets.deployments.delete("d1")
    assert await store.fetch("d1") is None
    assert store.get("d1") is None
    assert heard.take()[1] == [("d1", "ready", "gone"), ("d1", "unknown", "ready")]


@pytest.mark.parametrize("outage", [True, False])
async def test_what_others_write_is_learnt_as_it_happens(
    buckets: Buckets, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, outage: bool
) -> None:
    """After an outage, too. A delete that is older than what is known is no news."""
    store, other = DeploymentStore(buckets.deployments, tasks), DeploymentStore(buckets.deployments, tasks)
    watch, watches = buckets.deployments.watch, 0

    def watched(*args: Any, **options: Any) -> Any:
        nonlocal watches
        watches += 1
        if outage and watches == 1:
            raise Unavailable("NATS is away")
        return watch(*args, **options)

    monkeypatch.setattr(buckets.deployments, "watch", watched)
    task = tasks.start(store.follow(), "follow")
    await other.create(RECORD)
    await eventually(lambda: store.get("d1") == RECORD, "the new record is known", 20)
    await other.change("d1", partial(take, members=("a",), until=9.0))
    await eventually(lambda: store.of("arena", "1")[0].seats == {"a": 9.0}, "the seat is known", 20)
    newer = msgspec.structs.replace(RECORD, id="d2", capacity=3)
    await other.create(msgspec.structs.replace(RECORD, id="d2"))
    await eventually(lambda: store.get("d2") is not None, "the second record is known", 20)
    store.observe(Entry("d2", newer, 1000))
    await buckets.deployments.delete("d2")
    await buckets.deployments.delete("d1")
    await eventually(lambda: store.get("d1") is None, "the deletion is known", 20)
    assert store.get("d2") == newer
    assert watches == 1 + outage
    task.cancel()


async def test_one_refusal_leaves_the_others_of_its_write_alone(buckets: Buckets, tasks: Tasks) -> None:
    """Each gets its own error; what the record itself lacks fails all that wait for it, and not those after them."""
    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(msgspec.structs.replace(RECORD, capacity=2))

    def wrong(record: DeploymentRecord) -> DeploymentRecord:
        raise ValueError(record.id)

    outcomes = await asyncio.gather(
        store.change("d1", partial(take, members=("a",), until=9.0)),
        store.change("d1", wrong),
        store.change("d1", partial(take, members=("b",), until=9.0)),
        store.change("d1", partial(take, members=("c",), until=9.0)),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes] == [
        DeploymentRecord,
        ValueError,
        DeploymentRecord,
        NoSeat,
    ]
    await buckets.deployments.delete("d1")
    gone = await asyncio.gather(
        *(store.change("d1", partial(take, members=(id,), until=9.0)) for id in "de"), return_exceptions=True
    )
    assert [type(outcome) for outcome in gone] == [NoRecord, NoRecord]
    await store.create(RECORD)
    assert list((await store.change("d1", partial(take, members=("f",), until=9.0))).seats) == ["f"]


@pytest.mark.parametrize("stage", ["being written", "waiting"])
async def test_who_waits_when_the_process_ends_is_told_so(
    buckets: Buckets, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Whether its change was on its way, or behind one that was."""
    on_its_way = asyncio.Event()

    async def hangs(*_: object, **__: object) -> int:
        on_its_way.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with Tasks("test") as tasks:
        store = DeploymentStore(buckets.deployments, tasks)
        await store.create(RECORD)
        monkeypatch.setattr(buckets.deployments, "update", hangs)
        change = store.change("d1", partial(take, members=("a",), until=9.0))
        await on_its_way.wait()
        if stage == "waiting":
            change = store.change("d1", partial(take, members=("b",), until=9.0))
        (writer,) = tasks.running
        writer.cancel()
        with pytest.raises(Unavailable, match="stopping") as caught:
            await change
        assert caught.value.retry_after == 1
        await asyncio.wait((writer,))
        assert writer.cancelled()
        monkeypatch.undo()
        again = await store.change("d1", partial(take, members=("c",), until=9.0))
        assert list(again.seats) == ["c"]


async def test_a_record_that_others_change_all_the_time_is_given_up(
    buckets: Buckets, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a hundred lost races, and not after ten."""
    lost = 0

    async def another_was_first(*_: object, **__: object) -> int:
        nonlocal lost
        lost += 1
        raise LostRace("d1 was changed by somebody else")

    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(RECORD)
    monkeypatch.setattr(buckets.deployments, "update", another_was_first)
    with pytest.raises(Unavailable, match="d1 changes too quickly") as caught:
        await store.change("d1", partial(take, members=("a",), until=9.0))
    assert caught.value.retry_after == 1
    assert lost == 100


@pytest.mark.parametrize("stops", [True, False])
async def test_a_full_bucket_takes_a_stopping_server_in_brief(
    buckets: Buckets, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """Without what only its players need. A server that goes on has nothing to leave out: its change fails."""
    update = buckets.deployments.update
    ttls: list[float | None] = []

    async def room_for_short_ones(
        key: str, value: DeploymentRecord, revision: int, *, ttl: float | None = None
    ) -> int:
        if value.transports.udp is not None:
            raise Full("the bucket is full")
        ttls.append(ttl)
        return await update(key, value, revision, ttl=ttl)

    store = DeploymentStore(buckets.deployments, tasks)
    transports = Transports(udp=UdpAddress("127.0.0.1", 7777))
    await store.create(msgspec.structs.replace(RECORD, transports=transports))
    monkeypatch.setattr(buckets.deployments, "update", room_for_short_ones)
    state = DeploymentState.GONE if stops else DeploymentState.DRAINING
    change = store.change("d1", lambda record: msgspec.structs.replace(record, state=state))
    if not stops:
        with pytest.raises(Full):
            await change
        return
    assert (await change).transports == Transports()
    assert ttls == [60]
    entry = await buckets.deployments.get("d1")
    assert entry is not None
    assert (entry.value.state, entry.value.transports) == (state, Transports())


async def test_only_what_is_gone_expires(
    buckets: Buckets, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, ttls = buckets.deployments.update, []

    async def noted(key: str, value: DeploymentRecord, revision: int, *, ttl: float | None = None) -> int:
        ttls.append(ttl)
        return await update(key, value, revision, ttl=ttl)

    monkeypatch.setattr(buckets.deployments, "update", noted)
    store = DeploymentStore(buckets.deployments, tasks)
    await store.create(RECORD)
    await store.change("d1", partial(take, members=("a",), until=9.0))
    assert ttls == [None]


async def test_a_reservation_that_is_as_it_should_be_is_not_written_again(buckets: Buckets) -> None:
    limit, key = FleetLimit(buckets.fleets), fleet_key("arena", "1")
    await limit.remove("arena", "1", "d1")
    assert await buckets.fleets.get(key) is None
    await limit.restore("arena", "1", "d1", 5.0)
    first = await buckets.fleets.get(key)
    await limit.restore("arena", "1", "d1", 6.0)
    await limit.remove("arena", "1", "d2")
    assert await buckets.fleets.get(key) == first
    assert first is not None
    assert first.value.deployments == {"d1": 5.0}
    await limit.remove("arena", "1", "d1")
    assert (await limit.read("arena", "1")).deployments == {}
