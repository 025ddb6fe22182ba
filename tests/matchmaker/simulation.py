"""Matchmakers in virtual time: their real drivers and rules, on a NATS in memory that is late, forgetful and doubled.

One event loop whose clock jumps to the next timer, so a minute takes milliseconds and nothing depends on the machine.
Each process reaches everything through `Process.reach`, where it may be late, stopped for a while, or dead: between any
two of its reads and writes all others may do anything. Latencies come from one seeded generator.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from unittest import mock

from tipoff_matchmaker.compose import compose
from tipoff_matchmaker.service import Matchmaker
from tipoff_matchmaker.settings import Settings
from tipoff_orchestrator_client.base import Deployment, DeploySpec, OrchestratorUnavailable
from tipoff_orchestrator_client.fake import FakeOrchestrator
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import Games
from tipoff_shared.kv.bucket import Bucket, BucketAge, Entry, LostRace
from tipoff_shared.kv.buckets import Buckets
from tipoff_shared.kv.changes import Ack, Change
from tipoff_shared.nats.write_health import WriteHealth
from tipoff_shared.primitives.tasks import BoundedHandlers, Tasks
from tipoff_shared.subjects import Subjects

T = TypeVar("T")

EPOCH = 1_700_000_000.0
_TIMED_OUT = 5.0
_REDELIVERED = 10.0


class VirtualLoop(asyncio.SelectorEventLoop):
    """Nobody waits: when there is nothing to do, it is the next timer's time."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Jump(self))

    def time(self) -> float:
        return self.now

    def clock(self) -> float:
        """Unix seconds."""
        return EPOCH + self.now


class _Jump(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for something that will not happen"
        self._loop.now += max(0.0, timeout)
        return []


class Process:
    """One matchmaker's process, as the world sees it."""

    def __init__(self, world: MemoryNats, name: str) -> None:
        self.world = world
        self.name = name
        self.dead = False
        self.running = asyncio.Event()
        self.running.set()
        self.matchmaker: Matchmaker
        self.tasks: set[asyncio.Task[Any]] = set()
        self.owners: tuple[Tasks, ...] = ()
        self.at_step: dict[int, Callable[[], None]] = {}
        """What befalls it after so many more steps of its own."""
        self.disturbed = False
        """Whether it has been stopped or killed: then nothing is promised of the answers it owes."""

    async def reach(self) -> None:
        """One way between this process and anything else."""
        if self.at_step:
            self.at_step = {left - 1: befall for left, befall in self.at_step.items()}
            if (befall := self.at_step.pop(0, None)) is not None:
                befall()
        await asyncio.sleep(self.world.latency())  # virtual time
        await self.running.wait()
        if self.dead:
            await asyncio.get_running_loop().create_future()  # for ever


@dataclass
class _Feed:
    """A consumer: what it has not delivered, and what was not acknowledged."""

    waiting: dict[str, Change[Any]] = field(default_factory=dict)
    out: dict[int, Change[Any]] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, change: Change[Any]) -> None:
        self.waiting.pop(change.key, None)  # a bucket keeps the latest message of a key only
        self.waiting[change.key] = change
        self.news.set()


class _Bucket:
    def __init__(self) -> None:
        self.entries: dict[str, Entry[Any]] = {}
        self.revision = 0
        self.markers: dict[str, int] = {}
        self.feeds: list[_Feed] = []
        self.durables: dict[str, _Feed] = {}

    def latest(self) -> dict[str, Change[Any]]:
        """Present values and tombstones."""
        buried: dict[str, Change[Any]] = {
            key: Change(key, None, revision) for key, revision in self.markers.items()
        }
        return buried | {k: Change(k, entry.value, entry.revision) for k, entry in self.entries.items()}


class MemoryNats:
    """All buckets, and publish/subscribe. `trouble`: the share of writes whose outcome their writer does not learn.

    `on_write(bucket, key, before, after)` sees every write, to check what must always be true."""

    def __init__(self, loop: VirtualLoop, seed: int, on_write: Callable[[str, str, Any, Any], None]) -> None:
        self.loop = loop
        self.random = random.Random(seed)
        self.trouble = 0.0
        self.buckets: dict[str, _Bucket] = {}
        self.on_write = on_write
        self.subscribers: list[tuple[str, Process | None, Callable[[Any], Awaitable[None]]]] = []
        self.background: set[asyncio.Task[Any]] = set()

    def latency(self) -> float:
        kind = self.random.random()
        if kind < 0.9:
            return self.random.uniform(0, 0.003)
        return self.random.uniform(0, 0.3) if kind < 0.99 else self.random.uniform(0, 3)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self.loop.create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)
        return task

    def bucket(self, name: str) -> _Bucket:
        return self.buckets.setdefault(name, _Bucket())

    def values(self, name: str) -> dict[str, Any]:
        return {key: entry.value for key, entry in self.bucket(name).entries.items()}

    # Writing. `value` None is a delete marker.

    def write(
        self,
        name: str,
        key: str,
        value: Any,
        expected: int | None,
        ttl: float | None,
        *,
        expired: bool = False,
    ) -> int:
        bucket = self.bucket(name)
        known = bucket.entries.get(key)
        present = known.revision if known else bucket.markers.get(key, 0)
        if expected is not None and expected != present:
            raise LostRace(f"{name}/{key} was changed by somebody else")
        bucket.revision += 1
        revision = bucket.revision
        self.on_write(name, key, known.value if known else None, value)
        if value is None:
            bucket.entries.pop(key, None)
            bucket.markers[key] = revision
        else:
            bucket.markers.pop(key, None)
            bucket.entries[key] = Entry(key, value, revision)
        for feed in bucket.feeds:
            feed.tell(Change(key, value, revision, expired))
        if ttl is not None and value is not None:
            self.loop.call_later(ttl, self._expire, name, key, revision)
        return revision

    def _expire(self, name: str, key: str, revision: int) -> None:
        bucket = self.bucket(name)
        known = bucket.entries.get(key)
        if known is None or known.revision != revision:
            return
        if name == "gameservers":  # the bucket with markers
            self.write(name, key, None, None, None, expired=True)
        else:
            del bucket.entries[key]

    def forget(self, name: str, key: str, up_to: int) -> None:
        bucket = self.bucket(name)
        if (known := bucket.entries.get(key)) and known.revision <= up_to:
            del bucket.entries[key]
        if bucket.markers.get(key, up_to + 1) <= up_to:
            del bucket.markers[key]
        for feed in bucket.feeds:
            if (change := feed.waiting.get(key)) and change.revision <= up_to:
                del feed.waiting[key]
            # What nats-server does when an unacknowledged message is purged: those before it are not told again.
            purged = [out for out, held in feed.out.items() if held.key == key and out <= up_to]
            for out in [out for out in feed.out if purged and out <= max(purged)]:
                del feed.out[out]

    def feed(self, name: str, durable: str | None) -> _Feed:
        bucket = self.bucket(name)
        if durable is not None and durable in bucket.durables:
            return bucket.durables[durable]
        feed = _Feed()
        for entry in sorted(bucket.entries.values(), key=lambda entry: entry.revision):
            feed.tell(Change(entry.key, entry.value, entry.revision))
        bucket.feeds.append(feed)
        if durable is not None:
            bucket.durables[durable] = feed
        return feed

    # Publish and subscribe.

    def publish(self, subject: str, data: bytes) -> None:
        for prefix, process, heard in list(self.subscribers):
            if subject.startswith(prefix):
                self.spawn(self._deliver(subject, data, process, heard))

    async def _deliver(
        self, subject: str, data: bytes, process: Process | None, heard: Callable[[Any], Awaitable[None]]
    ) -> None:
        if process is not None:
            await process.reach()
        await heard(Message(subject, data))


@dataclass(frozen=True)
class Message:
    subject: str
    data: bytes
    reply: str = ""
    headers: None = None


class MemoryStore(Generic[T]):
    """`tipoff_shared.kv.bucket.Bucket`, as one process reaches it."""

    def __init__(self, nats: MemoryNats, process: Process, bucket: str) -> None:
        self._nats = nats
        self._process = process
        self.bucket = bucket

    async def get(self, key: str) -> Entry[T] | None:
        latest = await self.latest(key)
        return None if latest is None or latest.value is None else Entry(key, latest.value, latest.revision)

    async def latest(self, key: str) -> Change[T] | None:
        await self._process.reach()
        found = self._nats.bucket(self.bucket).latest().get(key)
        await self._process.reach()
        return found

    async def list(self, pattern: str = ">") -> dict[str, Entry[T]]:
        latest = await self.list_latest(pattern)
        return {
            key: Entry(key, change.value, change.revision)
            for key, change in latest.items()
            if change.value is not None
        }

    async def list_latest(self, pattern: str = ">") -> dict[str, Change[T]]:
        await self._process.reach()
        found = self._nats.bucket(self.bucket).latest()
        await self._process.reach()
        return found

    async def create(self, key: str, value: T, *, ttl: float | None = None) -> int:
        marker = self._nats.bucket(self.bucket).markers.get(key, 0)
        return await self._write(key, value, marker, ttl)

    async def update(self, key: str, value: T, revision: int, *, ttl: float | None = None) -> int:
        return await self._write(key, value, revision, ttl)

    change = Bucket.change  # the same loop, on this class's reads and writes

    def require_writable(self) -> None:
        """Trouble in this world is of writes, not of a disk."""

    async def probe(self, *, size: int = 0) -> None:
        """Nothing that a reader would see."""

    async def age(self, before: BucketAge | None = None) -> BucketAge:
        """This world loses no bucket."""
        return BucketAge(1.0, self._nats.bucket(self.bucket).revision)

    async def put(self, key: str, value: T, *, ttl: float | None = None, server: str = "") -> int:
        return await self._write(key, value, None, ttl)

    async def delete(self, key: str, revision: int | None = None, *, why: str = "") -> None:
        await self._write(key, None, revision, None)

    async def forget(self, key: str, up_to: int) -> None:
        await self._process.reach()
        self._nats.forget(self.bucket, key, up_to)
        await self._process.reach()

    async def _write(self, key: str, value: T | None, expected: int | None, ttl: float | None) -> int:
        await self._process.reach()
        if self._nats.random.random() < self._nats.trouble:
            return await self._write_in_trouble(key, value, expected, ttl)
        revision = self._nats.write(self.bucket, key, value, expected, ttl)
        await self._process.reach()
        return revision

    async def _write_in_trouble(
        self, key: str, value: T | None, expected: int | None, ttl: float | None
    ) -> int:
        """Not written, written at once, or written when its writer has given it up long ago."""

        def write() -> None:
            with suppress(LostRace):
                self._nats.write(self.bucket, key, value, expected, ttl)

        kind = self._nats.random.randrange(3)
        if kind == 1:
            write()
        elif kind == 2:
            self._nats.loop.call_later(self._nats.random.uniform(0, 3 * _TIMED_OUT), write)
        await asyncio.sleep(_TIMED_OUT)  # virtual time
        await self._process.reach()
        raise Unavailable("no answer", retry_after=2)

    @asynccontextmanager
    async def durable(self, name: str, *, ack_wait: float = _REDELIVERED) -> AsyncIterator[MemoryChanges[T]]:
        yield MemoryChanges(self._nats, self._process, self._nats.feed(self.bucket, name), shared=True)

    @asynccontextmanager
    async def watch(self, pattern: str = ">") -> AsyncIterator[MemoryChanges[T]]:
        feed = self._nats.feed(self.bucket, None)
        try:
            yield MemoryChanges(self._nats, self._process, feed, shared=False)
        finally:
            self._nats.bucket(self.bucket).feeds.remove(feed)


class MemoryChanges(Generic[T]):
    """A consumer that may deliver late, and one that is shared delivers again what nobody acknowledged."""

    def __init__(self, nats: MemoryNats, process: Process, feed: _Feed, *, shared: bool) -> None:
        self._nats = nats
        self._process = process
        self._feed = feed
        self._shared = shared

    async def fetch(self, *, batch: int = 100, timeout: float = 5.0) -> list[tuple[Change[T], Ack]]:
        await self._process.reach()
        feed = self._feed
        try:
            async with asyncio.timeout(timeout):
                while not feed.waiting:
                    feed.news.clear()
                    await feed.news.wait()
        except TimeoutError:
            return []
        taken = [feed.waiting.pop(key) for key in list(feed.waiting)[:batch]]
        for change in taken:
            if self._shared:
                feed.out[change.revision] = change
                self._nats.loop.call_later(_REDELIVERED, self._again, change)
        await self._process.reach()
        if self._nats.random.random() < 0.1:
            taken = [*taken, *taken]  # doubled
        return [(change, self._ack(change)) for change in taken]

    def _again(self, change: Change[T]) -> None:
        if self._feed.out.pop(change.revision, None) is not None and change.key not in self._feed.waiting:
            self._feed.tell(change)

    def _ack(self, change: Change[T]) -> Ack:
        return _MemoryAck(self._process, self._feed, change.revision)


class _MemoryAck:
    def __init__(self, process: Process, feed: _Feed, revision: int) -> None:
        self._process = process
        self._feed = feed
        self._revision = revision

    async def __call__(self) -> None:
        await self._process.reach()
        self._feed.out.pop(self._revision, None)

    async def confirmed(self) -> None:
        await self()
        await self._process.reach()


class MemoryBus:
    """What matchmakers use of `tipoff_shared.nats.connection.Bus` when nobody asks over NATS."""

    def __init__(self, nats: MemoryNats, process: Process) -> None:
        self._nats = nats
        self._process = process
        self.subjects = Subjects("")
        self.connected = True
        self.connected_since = nats.loop.time()
        self.writes = WriteHealth()

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        pass

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> None:
        await self._process.reach()
        self._nats.publish(subject, payload)

    async def subscribe(
        self, subject: str, callback: Callable[[Any], Awaitable[None]], *, queue: str = ""
    ) -> MemoryBus:
        self._nats.subscribers.append((subject.rstrip("*>"), self._process, callback))
        return self

    async def serve(
        self,
        subject: str,
        callback: Callable[[Any], Awaitable[None]],
        *,
        handlers: BoundedHandlers,
        queue: str = "",
        busy: Callable[[Any], Awaitable[None]] | None = None,
    ) -> MemoryBus:
        return await self.subscribe(subject, callback, queue=queue)

    async def unsubscribe(self) -> None:
        pass


class ReachedOrchestrator:
    """The orchestrator as one process reaches it; in trouble its answers are lost."""

    def __init__(self, inner: FakeOrchestrator, process: Process) -> None:
        self._inner = inner
        self._process = process
        self.name = inner.name

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            await self._process.reach()
        except BaseException:
            work.close()
            raise
        answer = await work
        await self._process.reach()
        if self._process.world.random.random() < self._process.world.trouble:
            raise OrchestratorUnavailable("no answer", retryable=True, may_have_started=True)
        return answer

    async def deploy(self, spec: DeploySpec) -> Deployment:
        return await self._call(self._inner.deploy(spec))

    async def get(self, deployment_id: str) -> Deployment | None:
        return await self._call(self._inner.get(deployment_id))

    async def stop(self, deployment_id: str) -> None:
        await self._call(self._inner.stop(deployment_id))

    async def list(self) -> list[Deployment]:
        return await self._call(self._inner.list())

    async def events(self) -> AsyncIterator[Deployment]:
        async for event in self._inner.events():
            await self._process.reach()
            yield event

    async def close(self) -> None:
        pass


def stores_of(nats: MemoryNats, process: Process) -> Buckets:
    names = Buckets.__dataclass_fields__
    return Buckets(**{name: MemoryStore(nats, process, name) for name in names})  # type: ignore[arg-type]


def start_process(
    nats: MemoryNats,
    name: str,
    games: Games,
    orchestrator: FakeOrchestrator,
    failed: Callable[[BaseException], None],
) -> Process:
    """A matchmaker begins to run; `failed` hears of every exception that nobody has handled."""
    process = Process(nats, name)
    tasks, loops = Tasks(name, failed), Tasks(name, failed)
    bus = MemoryBus(nats, process)
    parts = compose(
        Settings(instance=name),
        games,
        bus,  # type: ignore[arg-type] # as much of it as is used
        stores_of(nats, process),
        {orchestrator.name: ReachedOrchestrator(orchestrator, process)},
        tasks,
        nats.loop.clock,
    )
    process.matchmaker = matchmaker = Matchmaker(parts, loops, asyncio.Event())

    async def run() -> None:
        async with matchmaker.parts.peers.listening(loops, matchmaker.parts.health.beat):
            try:
                await matchmaker.follow()
            except Unavailable:  # a real one ends then
                process.dead = process.disturbed = True
            except Exception as exc:
                failed(exc)
            await asyncio.get_running_loop().create_future()

    process.tasks.add(nats.spawn(run()))
    process.owners = (tasks, loops)
    return process


def stop(process: Process) -> None:
    """SIGSTOP, until `process.running` is set."""
    process.disturbed = True
    process.running.clear()


def crash(process: Process) -> None:
    """kill -9: nothing that it still wanted to do happens."""
    process.dead = process.disturbed = True
    for task in process.tasks.union(*(owner.running for owner in process.owners)):
        task.cancel()


def run_world(work: Callable[[VirtualLoop], Coroutine[Any, Any, T]], seed: int) -> T:
    """Run `work` in virtual time; fails for an exception that nobody has handled."""
    loop = VirtualLoop()
    random.seed(seed)  # the drivers' jitter; ids stay random, and decide nothing
    unhandled: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    with mock.patch("time.monotonic", loop.time):
        try:
            outcome = loop.run_until_complete(work(loop))
        finally:
            for _ in range(5):
                tasks = asyncio.all_tasks(loop)
                for task in tasks:
                    task.cancel()
                if tasks:
                    loop.run_until_complete(asyncio.wait(tasks, timeout=1))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
    assert not unhandled, unhandled
    return outcome
