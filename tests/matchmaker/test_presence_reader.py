"""Connections and leases that game servers write, read without a reconciler: what is current is acted upon, and each
message is acknowledged when it was handled."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.matchmaker.fleet import Fleet
from tests.polling import eventually
from tipoff_matchmaker.presence_reader import CONNECTIONS
from tipoff_matchmaker.sessions.state_machine import Event
from tipoff_matchmaker.sessions.store import Outcome
from tipoff_shared.errors import Internal, Malformed, Unavailable
from tipoff_shared.kv.bucket import Entry
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import SessionState

READY, ACTIVE, GONE = SessionState.READY, SessionState.ACTIVE, SessionState.GONE


class Visits:
    """Connections of sessions of the server `one`."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.bucket = fleet.world.buckets.active_connections

    async def pending(self) -> int:
        """Messages that are not acknowledged, delivered or not."""
        info = await self.fleet.world.bus.js.consumer_info(self.bucket.stream, CONNECTIONS)
        return (info.num_ack_pending or 0) + (info.num_pending or 0)

    async def pending_is(self, count: int) -> None:
        async def so_many() -> bool:
            return await self.pending() == count

        await eventually(so_many, f"{count} are not acknowledged", 20)

    async def is_read(self) -> None:
        """All that was written before has been handled: so has a session's that came after it."""
        await self.fleet.session("last", READY)
        await self.bucket.put("last", "7")
        await self.becomes("last", ACTIVE)

    async def becomes(self, id: str, state: SessionState) -> None:
        await self.fleet.world.session_becomes(id, state, timeout=20)


@pytest.fixture
async def visits(fleet: Fleet) -> AsyncIterator[Visits]:
    await fleet.server(seats=dict.fromkeys(("s", "t", "last"), 9e9))
    failures: list[BaseException] = []
    async with Tasks("reader", failures.append) as tasks:
        await fleet.session("first", READY)
        await fleet.world.buckets.active_connections.put("first", "7")
        tasks.start(fleet.parts.presence_reader.connections(), "connections")
        await fleet.world.session_becomes("first", ACTIVE, timeout=20)
        yield Visits(fleet)
        await fleet.settled()
    assert failures == []


async def test_who_comes_plays_and_who_leaves_has_left_and_nothing_of_it_stays(visits: Visits) -> None:
    await visits.fleet.session("s", READY)
    await visits.bucket.put("s", "7")
    await visits.becomes("s", ACTIVE)
    await visits.bucket.delete("s")
    await visits.becomes("s", GONE)

    async def no_trace() -> bool:
        return await visits.bucket.latest("s") is None

    await eventually(no_trace, "the tombstone is removed", 20)
    await visits.pending_is(0)


async def test_a_departure_is_acknowledged_before_its_tombstone_is_removed(
    visits: Visits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a tombstone that stays was not handled to the end."""
    forget = visits.bucket.forget
    pending: list[int] = []

    async def noted(key: str, revision: int) -> None:
        pending.append(await visits.pending())
        await forget(key, revision)

    monkeypatch.setattr(visits.bucket, "forget", noted)
    await visits.fleet.session("s", READY)
    await visits.bucket.put("s", "7")
    await visits.becomes("s", ACTIVE)
    await visits.pending_is(0)
    await visits.bucket.delete("s")
    await eventually(lambda: pending, "its tombstone is removed", 20)
    assert pending == [0]


@pytest.mark.parametrize(("message", "current"), [("came", "another"), ("came", "none"), ("left", "another")])
async def test_a_message_that_is_older_than_its_key_changes_nothing(
    visits: Visits,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    message: str,
    current: str,
) -> None:
    """The key is read, and decides. The message does not come again, and is no mistake."""
    state = READY if message == "came" else ACTIVE
    await visits.fleet.session("s", state)
    if message == "left":
        await visits.fleet.world.buckets.active_connections.put("s", "7")
        await visits.pending_is(0)
    get = visits.bucket.get

    async def newer(key: str) -> Any:
        if key != "s":
            return await get(key)
        return Entry("s", "7", 1000) if current == "another" else None

    monkeypatch.setattr(visits.bucket, "get", newer)
    if message == "came":
        await visits.bucket.put("s", "7")
    else:
        await visits.bucket.delete("s")
    await visits.is_read()
    await visits.pending_is(0)
    record = await visits.fleet.world.session("s")
    assert record is not None
    assert record.state is state
    assert "could not be handled" not in caplog.text


@pytest.mark.parametrize(
    ("error", "comes_again"),
    [
        (Unavailable("NATS is away"), True),
        (Internal("a mistake"), False),
        (Malformed("nonsense"), False),
        (KeyError("a mistake"), False),
    ],
    ids=repr,
)
async def test_only_a_message_that_may_be_handled_later_comes_again(
    visits: Visits, monkeypatch: pytest.MonkeyPatch, error: Exception, comes_again: bool
) -> None:
    """And none holds up those behind it."""
    sessions = visits.fleet.parts.sessions
    apply = sessions.apply

    async def fails(session_id: str, event: Event) -> Outcome:
        if session_id == "s":
            raise error
        return await apply(session_id, event)

    monkeypatch.setattr(sessions, "apply", fails)
    await visits.fleet.session("s", READY)
    await visits.bucket.put("s", "7")
    await visits.is_read()
    await visits.pending_is(1 if comes_again else 0)


async def test_a_lease_that_was_followed_is_acknowledged(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []

    async def follows(change: Any) -> None:
        heard.append(change.key)

    monkeypatch.setattr(fleet.parts.liveness, "lease_changed", follows)
    await fleet.server()
    async with Tasks("reader") as tasks:
        tasks.start(fleet.parts.presence_reader.leases(), "leases")
        await fleet.says()

        async def acknowledged() -> bool:
            bucket = fleet.world.buckets.gameservers
            (info,) = await fleet.world.bus.js.consumers_info(bucket.stream) or (None,)
            return info is not None and heard == ["one"] and info.num_ack_pending == 0

        await eventually(acknowledged, "it is acknowledged", 20)
