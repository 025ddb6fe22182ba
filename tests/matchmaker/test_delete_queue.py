"""bevygap's queue of sessions to be deleted, without a reconciler: a message is a hint, the record decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from nats.js import api

from tests.matchmaker.fleet import Fleet
from tests.polling import eventually
from tipoff_matchmaker.allocators.router import Router
from tipoff_matchmaker.bevygap.delete_queue import DURABLE
from tipoff_matchmaker.sessions.state_machine import Ended
from tipoff_shared.errors import Unavailable
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import SessionRecord, SessionState

READY, CLOSING, GONE = SessionState.READY, SessionState.CLOSING, SessionState.GONE


class Queue:
    """The queue of a matchmaker that does nothing else."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.bus = fleet.world.bus

    async def asks(self, *bodies: bytes) -> None:
        for body in bodies:
            await self.bus.js.publish(self.bus.subjects.delete_queue("x"), body)

    async def is_read(self) -> None:
        async def empty() -> bool:
            return (await self.bus.js.stream_info(self.bus.subjects.delete_stream)).state.messages == 0

        await eventually(empty, "each message is acknowledged", 20)

    async def state(self, id: str) -> SessionState:
        record = await self.fleet.world.session(id)
        assert record is not None
        return record.state


@pytest.fixture
async def queue(fleet: Fleet) -> AsyncIterator[Queue]:
    """Its consumer was made by bevygap's own reader, with a setting that cannot be changed."""
    other = api.ConsumerConfig(durable_name=DURABLE, ack_policy=api.AckPolicy.EXPLICIT, max_waiting=77)
    await fleet.world.bus.js.add_consumer(fleet.world.bus.subjects.delete_stream, other)
    await fleet.server(seats=dict.fromkeys("abc", 9e9))
    failures: list[BaseException] = []
    async with Tasks("queue", failures.append) as tasks:
        tasks.start(fleet.parts.delete_queue.run(), "run")
        yield Queue(fleet)
        await fleet.settled()
    assert failures == []


async def test_only_sessions_that_are_closing_are_released(queue: Queue) -> None:
    """What the message says is not believed."""
    for id, state in (("a", CLOSING), ("b", READY), ("c", GONE)):
        await queue.fleet.session(id, state)
    await queue.asks(b"nonsense", b"\xff" * 100, b"b", b"c", b"a")
    await queue.is_read()
    assert [await queue.state(id) for id in "abc"] == [GONE, READY, GONE]
    assert sorted((await queue.fleet.written()).seats) == ["b", "c"]


@pytest.mark.parametrize("error", [Unavailable("NATS is away"), KeyError("a mistake")], ids=repr)
async def test_a_message_that_cannot_be_handled_holds_up_none_behind_it(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The reconciler finds the session."""
    read = queue.fleet.parts.sessions.read

    async def fails(session_id: str) -> SessionRecord | None:
        if session_id == "a":
            raise error
        return await read(session_id)

    monkeypatch.setattr(queue.fleet.parts.sessions, "read", fails)
    for id in "ab":
        await queue.fleet.session(id, CLOSING)
        await queue.asks(id.encode())
    await queue.is_read()
    assert [await queue.state(id) for id in "ab"] == [CLOSING, GONE]


async def test_the_hints_of_this_process_cost_no_reading(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it releases the session, and afterwards."""
    reads: list[str] = []
    read, release = queue.fleet.parts.sessions.read, Router.release_seat
    go_on, began = asyncio.Event(), asyncio.Event()

    async def noted(session_id: str) -> SessionRecord | None:
        reads.append(session_id)
        return await read(session_id)

    async def slow(self: Router, record: SessionRecord) -> Any:
        began.set()
        await go_on.wait()
        await release(self, record)

    monkeypatch.setattr(queue.fleet.parts.sessions, "read", noted)
    monkeypatch.setattr(Router, "release_seat", slow)
    await queue.fleet.session("a", READY)
    await queue.fleet.parts.sessions.apply("a", Ended("enough"))
    await asyncio.wait_for(began.wait(), 20)
    await queue.is_read()  # the release has published a hint
    go_on.set()
    await queue.fleet.settled()
    await queue.asks(b"a")
    await queue.is_read()
    assert reads == []
    assert await queue.state("a") is GONE


async def test_its_consumer_is_the_one_of_bevygaps_reader(fleet: Fleet) -> None:
    async with Tasks("queue") as tasks:
        tasks.start(fleet.parts.delete_queue.run(), "run")
        queue = Queue(fleet)
        await queue.asks(b"nonsense")
        await queue.is_read()
        config = (await queue.bus.js.consumer_info(queue.bus.subjects.delete_stream, "api-deleter-1")).config
        assert (config.ack_wait, config.ack_policy) == (30, api.AckPolicy.EXPLICIT)
