"""Events of game servers on their way from the stream to what writes them down: which are handled, in which order, and
which are acknowledged."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.polling import eventually
from tipoff_matchmaker.deployments.store import DeploymentStore
from tipoff_matchmaker.event_secret import EventSecret
from tipoff_matchmaker.isolated import reader as reader_module
from tipoff_matchmaker.isolated.probe import EventProbe
from tipoff_matchmaker.isolated.reader import EventReader
from tipoff_shared.errors import Conflict, Unavailable
from tipoff_shared.event_stream import DURABLE, create_event_stream
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.nats.errors import translated
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentRecord, DeploymentState
from tipoff_shared.server_events import Players, ServerEvent, seal

Write = Callable[[str, ServerEvent], Awaitable[None]]


class Stream:
    """The stream of events, its reader, and what the reader passes on."""

    def __init__(self, bus: Bus, secret: EventSecret, deployments: DeploymentStore, tasks: Tasks) -> None:
        self.bus = bus
        self.secret = secret
        self.deployments = deployments
        self.handled: list[tuple[str, int]] = []
        self.refused: list[int] = []
        self.write: Write = self._at_once
        self.tasks = tasks
        counted: Any = SimpleNamespace(event_refused=self.refused.append)
        self.reader = EventReader(
            bus,
            self,  # type: ignore[arg-type] # it is asked for `write_down` only
            deployments,
            counted,
            tasks,
            secret.key_of,
        )

    async def _at_once(self, deployment_id: str, event: ServerEvent) -> None:
        pass

    async def write_down(self, deployment_id: str, event: ServerEvent) -> None:
        self.handled.append((deployment_id, event.seq))
        await self.write(deployment_id, event)

    async def says(self, seq: int, server: str = "one", *, seal_of: str = "") -> None:
        body, headers = seal(
            self.secret.key_of(seal_of or server), server, ServerEvent("boot", 50.0, seq, Players())
        )
        await self.publishes(server, body, headers)

    async def publishes(self, server: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        await self.bus.nc.request(self.bus.subjects.events(server), body, headers=headers, timeout=20)

    async def left(self) -> int:
        """Events in the stream: those that were not acknowledged."""
        return (await self.bus.js.stream_info(self.bus.subjects.events_stream)).state.messages

    async def empties(self) -> None:
        async def empty() -> bool:
            return await self.left() == 0

        await eventually(empty, "all are acknowledged", 20)

    async def has_handled(self, *events: tuple[str, int]) -> None:
        await eventually(lambda: sorted(self.handled) == sorted(events), f"handled: {events}", 20)


@pytest.fixture
async def stream(nats: Bus) -> AsyncIterator[Stream]:
    buckets = await create_buckets(nats)
    secret = EventSecret(nats)
    await secret.ensure()
    failures: list[BaseException] = []
    async with Tasks("events", failures.append) as tasks:
        stream = Stream(nats, secret, DeploymentStore(buckets.deployments, tasks), tasks)
        for id in ("one", "two"):
            await stream.deployments.create(
                DeploymentRecord(id, DeploymentState.READY, "arena", "1", "fake", capacity=4, created_at=1.0)
            )
        tasks.start(stream.reader.run(), "reader")
        yield stream
    assert failures == []


async def test_events_of_one_server_are_handled_in_order_and_of_others_beside_them(stream: Stream) -> None:
    """One server that takes long delays itself only; each event is acknowledged when it is written down."""
    go_on = asyncio.Event()

    async def one_is_slow(deployment_id: str, event: ServerEvent) -> None:
        if deployment_id == "one":
            await go_on.wait()

    stream.write = one_is_slow
    for seq in (1, 2, 3):
        await stream.says(seq)
    await stream.says(7, "two")
    await stream.says(8, "unknown")
    await stream.has_handled(("one", 1), ("two", 7), ("unknown", 8))
    go_on.set()
    await stream.empties()
    assert [event for event in stream.handled if event[0] == "one"] == [("one", 1), ("one", 2), ("one", 3)]
    info = await stream.bus.js.consumer_info(stream.bus.subjects.events_stream, DURABLE)
    assert info.config.ack_wait == 5
    assert info.config.max_ack_pending == 8000


async def test_refused_events_are_thrown_away_and_counted(
    stream: Stream, caplog: pytest.LogCaptureFixture
) -> None:
    """Of known and unknown servers; the log has one line for many."""
    for server in ("one", "unknown"):
        await stream.says(1, server, seal_of="two")
        await stream.publishes(server, b"garbage")
    body = b"garbage"
    await stream.publishes("one", body, {"Tipoff-Mac": stream.secret.key_of("one").mac("one", body)})
    await stream.empties()
    assert stream.handled == []
    assert sorted(stream.refused) == [400, 403, 403, 403, 403]
    refusals = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(refusals) == 1
    assert refusals[0].startswith("1 event(s) of game servers refused; the last in the name of 'one'")


@pytest.mark.parametrize("error", [Unavailable("NATS is away"), Conflict("no")], ids=repr)
async def test_an_event_that_could_not_be_written_down_comes_again(stream: Stream, error: Exception) -> None:
    """And holds up none of those behind it."""

    async def fails(deployment_id: str, event: ServerEvent) -> None:
        if event.seq == 1:
            raise error

    stream.write = fails
    for seq in (1, 2):
        await stream.says(seq)
    await stream.has_handled(("one", 1), ("one", 2))

    async def one_is_left() -> bool:
        return await stream.left() == 1

    await eventually(one_is_left, "the other is acknowledged", 20)
    info = await stream.bus.js.consumer_info(stream.bus.subjects.events_stream, DURABLE)
    assert info.num_ack_pending == 1
    await eventually(lambda: len(stream.tasks.running) == 1, "only the reader is left", 20)


async def test_an_event_that_nothing_can_handle_does_not_come_again(stream: Stream) -> None:
    async def breaks(deployment_id: str, event: ServerEvent) -> None:
        if event.seq == 1:
            raise KeyError("a mistake")

    stream.write = breaks
    for seq in (1, 2):
        await stream.says(seq)
    await stream.empties()
    await stream.has_handled(("one", 1), ("one", 2))


async def test_an_event_that_waited_too_long_is_left_to_others(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been delivered again by then, perhaps to another matchmaker. One that waited for less is handled."""
    go_on, now = asyncio.Event(), time.monotonic()

    async def waits(deployment_id: str, event: ServerEvent) -> None:
        nonlocal now
        await go_on.wait()
        now += {1: 3.9, 2: 0.2}.get(event.seq, 0.0)

    monkeypatch.setattr(reader_module, "time", SimpleNamespace(monotonic=lambda: now))
    stream.write = waits
    for seq in (1, 2, 3):
        await stream.says(seq)
    await stream.has_handled(("one", 1))

    async def all_are_here() -> bool:
        info = await stream.bus.js.consumer_info(stream.bus.subjects.events_stream, DURABLE)
        return info.num_ack_pending == 3

    await eventually(all_are_here, "all have been delivered", 20)
    go_on.set()

    async def one_is_left() -> bool:
        return await stream.left() == 1

    await eventually(one_is_left, "the others are acknowledged", 20)
    assert stream.handled == [("one", 1), ("one", 2)]


async def test_a_server_that_says_too_much_is_slowed_down(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 events at once, then 300 in a second, refused ones included; another server is not."""
    pauses: list[float] = []
    go_on = asyncio.Event()

    async def slept(seconds: float) -> None:
        pauses.append(seconds)
        await go_on.wait()

    now = 0.0
    monkeypatch.setattr(reader_module, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(reader_module, "asyncio", SimpleNamespace(sleep=slept, Event=asyncio.Event))
    for number in range(4):
        for seq in range(75):
            if seq % 2:
                await stream.says(100 * number + seq + 1)
            else:
                await stream.publishes("one", b"garbage")
        await stream.empties()
    assert pauses == []
    await stream.says(901)
    await stream.says(902)
    await eventually(lambda: len(pauses) == 1, "it is slowed down", 20)
    assert pauses == [pytest.approx(1 / 300)]
    await stream.says(1, "two")
    await eventually(lambda: ("two", 1) in stream.handled, "the other one is not", 20)
    assert ("one", 901) not in stream.handled
    go_on.set()
    await stream.empties()


# The probe.


class Heard:
    """Stands for what is told whether game servers are heard."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []
        self.why: list[str] = []

    def heard(self, at: float) -> None:
        self.told.append(("heard", at))

    def disturbed(self, why: str) -> None:
        self.told.append(("disturbed", time.monotonic()))
        self.why.append(why)

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


def probe_of(bus: Bus, secret: EventSecret, heard: Heard, *, lease_ttl: float) -> EventProbe:
    return EventProbe(bus, heard, "me", secret.key_of, lease_ttl=lease_ttl)  # type: ignore[arg-type] # as much as it calls


@pytest.fixture
async def secret(nats: Bus) -> EventSecret:
    secret = EventSecret(nats)
    await secret.ensure()
    return secret


async def _consumer(bus: Bus) -> Any:
    """The consumer of the matchmakers, read by the test."""
    return await bus.js.pull_subscribe(
        bus.subjects.events("*"), durable=DURABLE, stream=bus.subjects.events_stream
    )


async def test_servers_are_heard_up_to_the_probe_that_was_read_last(nats: Bus, secret: EventSecret) -> None:
    """One probe at a time; it says nothing of a server."""
    heard = Heard()
    probe = probe_of(nats, secret, heard, lease_ttl=60)
    with pytest.raises(Unavailable):
        await probe.once()
    consumer = await _consumer(nats)
    before = time.monotonic()
    await probe.once()
    after = time.monotonic()
    await probe.once()
    assert heard.told == [], "it has not been read"
    (message,) = await consumer.fetch(5, timeout=20)
    assert message.subject == nats.subjects.events("_probe_me")
    await probe.once()
    ((kind, at),) = heard.told
    assert kind == "heard"
    assert before <= at <= after
    (second,) = await consumer.fetch(5, timeout=20)
    assert second.data != message.data
    await probe.once()
    assert heard.kinds == ["heard", "heard"]


async def test_events_that_are_read_too_late_disturb(nats: Bus, secret: EventSecret) -> None:
    """After half a lease."""
    heard = Heard()
    probe = probe_of(nats, secret, heard, lease_ttl=0.02)
    await _consumer(nats)
    await probe.once()
    await asyncio.sleep(0.011)  # half of the lease
    await probe.once()
    assert heard.kinds == ["disturbed"]
    assert "more than 0.01 s late" in heard.why[0]


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ({"max_msgs": 3}, "is full: 2 of 3 events"),
        ({"max_bytes": 2000}, "of 2000 bytes"),
        ({"max_msg_size": 1}, "takes none: "),
    ],
    ids=str,
)
async def test_a_stream_that_takes_no_more_disturbs(
    nats: Bus, secret: EventSecret, limit: dict[str, int], why: str
) -> None:
    heard = Heard()
    probe = probe_of(nats, secret, heard, lease_ttl=60)
    await _consumer(nats)
    info = await nats.js.stream_info(nats.subjects.events_stream)
    for name, value in limit.items():
        setattr(info.config, name, value)
    await nats.js.update_stream(info.config)
    if "max_msg_size" not in limit:
        for number in range(2):
            await nats.nc.request(nats.subjects.events(f"server-{number}"), b"x" * 500, timeout=20)
    await probe.once()
    assert heard.kinds == ["disturbed"]
    assert why in heard.why[0]


async def test_a_probe_goes_on_by_itself_and_notices_that_the_stream_is_lost(
    nats: Bus, secret: EventSecret
) -> None:
    """Until the reader has made its consumer there is nothing to tell."""
    heard = Heard()
    probe = probe_of(nats, secret, heard, lease_ttl=0.4)
    async with Tasks("probe") as tasks:
        tasks.start(probe.run(), "probe")
        consumer = await _consumer(nats)
        for number in (1, 2):
            await consumer.fetch(1, timeout=20)
            await eventually(lambda number=number: heard.kinds[-number:] == ["heard"] * number, "heard", 20)  # type: ignore[misc]
        heard.told.clear()
        with translated():
            await nats.js.delete_stream(nats.subjects.events_stream)
        await eventually(lambda: heard.kinds[-2:] == ["disturbed"] * 2, "it is noticed, each time", 20)
        await create_event_stream(nats)
        consumer = await _consumer(nats)
        await consumer.fetch(1, timeout=20)
        await eventually(lambda: "heard" in heard.kinds, "they are heard again", 20)
