"""Three NATS nodes with three replicas of everything: one may be lost at any time, two at once stop the service."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from tests.faults.nats_cluster import NatsCluster, nats_cluster
from tests.faults.nats_writers import Acknowledged, write_until
from tests.faults.real_servers import active, echoes, real_world, seat_within, settled_sweeps
from tests.matchmaker.world import ARENA
from tests.polling import eventually
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.bucket import Bucket, Entry, LostRace
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.kv.changes import Changes
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionRecord, SessionState

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # three servers, elections

RECORD = SessionRecord("another", SessionState.REQUESTED, "arena", "1", "1", "me", created_at=0.0)
WARM = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    """Three nodes, new for each test."""
    async with nats_cluster(tmp_path) as cluster:
        yield cluster


@pytest.mark.row(17)
async def test_no_acknowledged_write_is_lost_with_the_leader(cluster: NatsCluster) -> None:
    """Eight writers; the node that leads their bucket is killed, and the next one stopped; writing goes on without it,
    and all that was acknowledged is there, also when it is back."""
    async with connect(cluster.settings("leader"), name="writers") as bus:
        sessions = (await create_buckets(bus)).sessions
        written, stop = Acknowledged(), asyncio.Event()
        writers = [asyncio.create_task(write_until(stop, sessions, f"w{n}", written)) for n in range(8)]
        for how in (signal.SIGKILL, signal.SIGSTOP):
            await written.reaches(written.count + 1000)
            leader = await cluster.leader_of(bus, sessions.stream)
            leader.process.send_signal(how)
            lost_at = time.monotonic()
            try:
                # What was under way then may still be acknowledged; 500 more cannot be.
                await written.reaches(written.count + 500, timeout=40)
                gap = time.monotonic() - lost_at
                assert await written.lost(sessions) == []
            finally:
                if how is signal.SIGSTOP:
                    leader.process.send_signal(signal.SIGCONT)
                else:
                    await leader.process.wait()
                    await leader.start()
            await cluster.caught_up(bus)
            await written.reaches(written.count + 500)
            print(f"{how.name}: {written.count} acknowledged, {written.refused} refused, gap {gap:.1f} s")
        stop.set()
        await asyncio.gather(*writers)
        assert await written.lost(sessions) == []


@pytest.mark.row(18)
async def test_with_two_of_three_down_nothing_is_written_until_one_is_back(cluster: NatsCluster) -> None:
    """Writes are refused, each within its deadline; with the second node they go on, and nothing acknowledged is
    lost."""
    async with connect(cluster.settings("two"), name="writers") as bus:
        sessions = (await create_buckets(bus)).sessions
        written, stop = Acknowledged(), asyncio.Event()
        writers = [asyncio.create_task(write_until(stop, sessions, f"w{n}", written)) for n in range(8)]
        await written.reaches(1000)
        down = list(cluster.nodes.values())[:2]
        await asyncio.gather(*(node.kill() for node in down))
        await asyncio.sleep(2)  # what was under way is over
        count, began = written.count, time.monotonic()
        with pytest.raises(Unavailable):
            await sessions.create("another", RECORD)
        took = time.monotonic() - began
        await asyncio.sleep(2)  # in which nothing more is written
        assert written.count == count
        assert took < 6
        await down[0].start()
        began = time.monotonic()
        await written.reaches(count + 500, timeout=40)
        print(
            f"two down: refused within {took:.1f} s, again {time.monotonic() - began:.1f} s after the second node"
        )
        stop.set()
        await asyncio.gather(*writers)
        assert await written.lost(sessions) == []


@pytest.mark.row(17, 85)
@pytest.mark.parametrize("replaced", [False, True], ids=["upgraded", "replaced"])
async def test_players_are_served_while_one_node_after_the_other_is_lost(
    cluster: NatsCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture, replaced: bool
) -> None:
    """Each node in turn is killed and comes back, as in an upgrade of the cluster, or with an empty disk: who plays
    plays on, nobody is reaped, and whoever comes is served within 30 s (an election takes 7 to 15). No bucket is taken
    for lost, although nodes may name another time of its creation, and those that lead in the end began empty."""
    settings = cluster.settings("rolling")
    async with (
        real_world(settings, lease_ttl=2) as (world, servers),
        world.matchmaker(WARM, lease_ttl=2.0, lease_grace=8.0) as matchmaker,
    ):
        await world.servers_ready(1)
        async with active(world) as (stays, player):
            server = servers.of(stays)
            for name, node in cluster.nodes.items():
                await node.kill()
                began = time.monotonic()
                answers = await seat_within(world, 30)
                print(f"without {name}: a seat after {time.monotonic() - began:.1f} s")
                assert answers.deployment_id == stays.deployment_id
                assert await echoes(player)
                if replaced:
                    shutil.rmtree(tmp_path / name / "jetstream")
                await node.start()
                await cluster.caught_up(world.bus)
            await settled_sweeps(matchmaker, 2)
            record = await world.session(stays.session_id)
            assert record is not None
            assert record.state is SessionState.ACTIVE
            assert servers.of(stays) is server
    assert "was lost" not in caplog.text
    assert "NATS has" not in caplog.text


@pytest.mark.row(16, 17)
async def test_a_listing_is_never_older_than_its_call(cluster: NatsCluster) -> None:
    """A follower was stopped, and is behind when it runs again: listings, which any replica may serve, still hold
    everything that was acknowledged before they began."""
    async with connect(cluster.settings("stale"), name="lister") as bus:
        sessions = (await create_buckets(bus)).sessions
        leader = await cluster.leader_of(bus, sessions.stream)
        follower = next(node for node in cluster.nodes.values() if node is not leader)
        revision = await sessions.create("s", RECORD)
        for round in range(6):
            follower.process.send_signal(signal.SIGSTOP)
            for number in range(300):
                changed = msgspec.structs.replace(RECORD, attempt=round * 1000 + number)
                revision = await _update(sessions, changed, revision)
            follower.process.send_signal(signal.SIGCONT)
            found = await asyncio.gather(*(_read(sessions) for _ in range(8)))
            assert [one["s"].revision for one in found] == [revision] * 8


async def _update(sessions: Bucket[SessionRecord], changed: SessionRecord, revision: int) -> int:
    """Compare-and-set, also when the answer to a first try got lost (the client sat on the stopped node)."""
    while True:
        try:
            return await sessions.update("s", changed, revision)
        except (LostRace, Unavailable):
            with contextlib.suppress(Unavailable):
                entry = await sessions.get("s")
                assert entry is not None
                revision = entry.revision
            await asyncio.sleep(0.02)  # a refused write does not let other tasks run


async def _read(sessions: Bucket[SessionRecord]) -> dict[str, Entry[SessionRecord]]:
    # Its reader may be placed on the node that does not run yet.
    return await eventually(sessions.list, "the bucket can be read", 30, unready=(Unavailable,))


@pytest.mark.row(16, 17)
async def test_readers_whose_node_is_lost_read_on(cluster: NatsCluster) -> None:
    """A consumer lives on its own node choice, so none of its reader's connections breaks when that node is lost:
    a watch and a durable reader go on all the same, or say `Unavailable` and find what they missed when they begin
    again."""
    async with connect(cluster.settings("reader"), name="reader") as bus:
        sessions = (await create_buckets(bus)).sessions
        await sessions.create("before", RECORD)
        watch, durable = _Reader(sessions.watch), _Reader(lambda: sessions.durable("mine"))
        async with watch, durable:
            await asyncio.gather(watch.sees("before"), durable.sees("before"))
            for number in range(2):  # the nodes of both
                consumers = await bus.js.consumers_info(sessions.stream)
                consumer = next(info for info in consumers if bool(info.config.durable_name) == bool(number))
                assert consumer.cluster is not None
                node = cluster.nodes[consumer.cluster.leader or ""]
                await node.kill()
                lost_at = time.monotonic()
                key = f"after{number}"
                await _put(sessions, key)
                await asyncio.gather(watch.sees(key), durable.sees(key))
                print(f"both read on {time.monotonic() - lost_at:.1f} s after the loss of a consumer's node")
                await node.start()
                await cluster.caught_up(bus)


class _Reader:
    """Reads for as long as the block lasts, and begins again when it must."""

    def __init__(self, begin: Callable[[], AbstractAsyncContextManager[Changes[SessionRecord]]]) -> None:
        self._begin = begin
        self._seen: set[str] = set()
        self._news = asyncio.Event()

    async def __aenter__(self) -> None:
        self._task = asyncio.create_task(self._read())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            with contextlib.suppress(Unavailable):
                async with self._begin() as changes:
                    while True:
                        for change, ack in await changes.fetch():
                            self._seen.add(change.key)
                            self._news.set()
                            await ack()
            await asyncio.sleep(0.1)  # before it begins again, as a service would

    async def sees(self, key: str) -> None:
        async with asyncio.timeout(30):
            while key not in self._seen:
                self._news.clear()
                await self._news.wait()


async def _put(sessions: Bucket[SessionRecord], key: str) -> None:
    await eventually(lambda: sessions.put(key, RECORD), "it is written", 30, unready=(Unavailable,))
