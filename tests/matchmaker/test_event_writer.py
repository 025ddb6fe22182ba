"""What events of untrusted game servers write into the buckets: only what each may say, each as often as it comes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import msgspec
import pytest
from nats.aio.msg import Msg

from tests.matchmaker.fleet import Fleet
from tipoff_matchmaker.isolated.writer import EventWriter
from tipoff_shared.errors import Unavailable
from tipoff_shared.kv.changes import Change
from tipoff_shared.messages import Transports, UdpAddress
from tipoff_shared.records import (
    DeploymentRecord,
    DeploymentState,
    GameserverLease,
    Kick,
    LeaseState,
    SessionState,
    decode_command,
)
from tipoff_shared.server_events import Context, Goodbye, Lease, Players, ServerEvent, What


@dataclass
class Ages:
    """Which buckets are lost."""

    lost: dict[str, float] = field(default_factory=dict)

    async def may_have_lost(self, bucket: str) -> bool:
        return bucket in self.lost


class Events:
    """Events of the server `one`, numbered as they come, and the kicks that it hears."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.ages = Ages()
        self.contexts: list[dict[str, object]] = []
        self.kicked: list[str] = []
        self.writer = EventWriter(
            fleet.world.bus,
            self.ages,
            fleet.world.buckets,
            fleet.parts.deployments,
            self._context,
            longest_lease=5,
        )  # type: ignore[arg-type]
        self._seq = 0

    async def _context(self, data: bytes) -> None:
        self.contexts.append(json.loads(data))

    async def listen(self) -> None:
        async def heard(msg: Msg) -> None:
            command = decode_command(msg.data)
            assert isinstance(command, Kick)
            self.kicked.append(command.session_id)

        bus = self.fleet.world.bus
        await bus.nc.subscribe(bus.subjects.commands("one"), cb=heard)
        await bus.flush()

    async def says(
        self, what: What, *, boot: str = "boot", seq: int | None = None, server: str = "one"
    ) -> None:
        self._seq += 1
        event = ServerEvent(boot, 50.0, self._seq if seq is None else seq, what)
        await self.writer.write_down(server, event)

    async def kicks(self) -> list[str]:
        await self.fleet.world.bus.flush()
        await asyncio.sleep(0.02)  # a message that must not come can only be waited for
        return sorted(self.kicked)

    async def connection(self, session: str) -> Change[str] | None:
        return await self.fleet.world.buckets.active_connections.latest(session)

    async def lease(self) -> GameserverLease | None:
        entry = await self.fleet.world.buckets.gameservers.get("one")
        return None if entry is None else entry.value


@pytest.fixture
async def events(fleet: Fleet) -> Events:
    events = Events(fleet)
    await events.listen()
    return events


LEASE = GameserverLease(
    "one", "boot", "arena", "1", LeaseState.READY, Transports(udp=UdpAddress("127.0.0.1", 7777)), capacity=4
)


@pytest.mark.parametrize("known", [True, False])
async def test_a_lease_is_written_in_order_and_for_its_time(events: Events, known: bool) -> None:
    if known:
        await events.fleet.server()
    else:
        record = DeploymentRecord(
            "one", DeploymentState.READY, "arena", "1", "fake", capacity=4, created_at=1.0
        )
        await events.fleet.world.buckets.deployments.create("one", record)
    await events.says(Lease(LEASE, 60), seq=3)
    lease = await events.lease()
    assert lease == msgspec.structs.replace(LEASE, started_at=50.0, seq=3)
    await events.says(Lease(msgspec.structs.replace(LEASE, players=9), 60), seq=2)
    assert await events.lease() == lease, "it was overtaken"


async def test_the_record_of_a_known_server_is_not_read_for_each_event(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise Unavailable("NATS is away")

    await events.fleet.server()
    monkeypatch.setattr(events.fleet.world.buckets.deployments, "get", away)
    await events.says(Lease(LEASE, 60))
    assert await events.lease() is not None


@pytest.mark.parametrize("state", [None, DeploymentState.GONE])
async def test_a_server_without_a_living_record_says_nothing(
    events: Events, state: DeploymentState | None
) -> None:
    if state is not None:
        record = DeploymentRecord("one", state, "arena", "1", "fake", capacity=4, created_at=1.0)
        await events.fleet.world.buckets.deployments.create("one", record)
    await events.says(Lease(LEASE, 60))
    assert await events.lease() is None


async def test_no_lease_lives_longer_than_allowed(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    ttls: list[object] = []
    change = events.fleet.world.buckets.gameservers.change

    async def noted(*args: object, **options: object) -> object:
        ttls.append(options.get("ttl"))
        return await change(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(events.fleet.world.buckets.gameservers, "change", noted)
    await events.fleet.server()
    await events.says(Lease(LEASE, 60))
    await events.says(Lease(LEASE, 2))
    assert ttls == [5, 2]


@pytest.mark.parametrize(
    ("boot", "seq", "stays"), [("boot", 9, False), ("another", 9, True), ("boot", 2, True)]
)
async def test_a_goodbye_withdraws_the_lease_of_its_own_boot(
    events: Events, boot: str, seq: int, stays: bool
) -> None:
    await events.fleet.server()
    await events.says(Lease(LEASE, 60), seq=3)
    await events.says(Goodbye(), boot=boot, seq=seq)
    assert (await events.lease() is not None) is stays


async def test_a_player_with_a_seat_there_is_connected(events: Events) -> None:
    await events.fleet.server()
    await events.fleet.session("s", SessionState.READY)
    for _ in range(2):
        await events.says(Players({"s": "7"}))
    connection = await events.connection("s")
    assert connection is not None
    assert connection.value == "7"
    assert await events.kicks() == []


@pytest.mark.parametrize(
    ("changes", "client", "boot"),
    [
        ({"deployment_id": "another"}, "7", "boot"),
        ({"boot_id": "earlier"}, "7", "boot"),
        ({}, "8", "boot"),
        ({"state": SessionState.CLOSING}, "7", "boot"),
    ],
)
async def test_a_player_without_a_seat_there_is_kicked(
    events: Events, changes: dict[str, object], client: str, boot: str
) -> None:
    await events.fleet.server()
    state = changes.pop("state", SessionState.READY)
    assert isinstance(state, SessionState)
    await events.fleet.session("s", state, **changes)
    await events.says(Players({"s": client}), boot=boot)
    assert await events.connection("s") is None
    assert await events.kicks() == ["s"]


@pytest.mark.parametrize(("lost", "kicked"), [([], ["s"]), (["sessions"], []), (["deployments"], ["s"])])
async def test_a_session_that_may_be_lost_with_its_bucket_is_no_reason_to_kick(
    events: Events, lost: list[str], kicked: list[str]
) -> None:
    events.ages.lost = dict.fromkeys(lost, 1.0)
    await events.fleet.server()
    await events.says(Players({"s": "7"}))
    assert await events.connection("s") is None
    assert await events.kicks() == kicked


async def test_who_is_known_to_be_elsewhere_is_kicked_also_while_records_are_lost(events: Events) -> None:
    events.ages.lost = {"sessions": 1.0}
    await events.fleet.server()
    await events.fleet.session("s", SessionState.READY, deployment_id="another")
    await events.says(Players({"s": "7"}))
    assert await events.kicks() == ["s"]


async def test_who_has_left_does_not_come_back_by_an_old_event(events: Events) -> None:
    await events.fleet.server()
    await events.fleet.session("s", SessionState.ACTIVE)
    await events.says(Players({"s": "7"}))
    await events.says(Players(left=["s"]))
    await events.says(Players({"s": "7"}))
    connection = await events.connection("s")
    assert connection is not None
    assert connection.value is None
    assert await events.kicks() == ["s"]


@pytest.mark.parametrize(
    ("state", "server", "connected", "departure"),
    [
        (SessionState.ACTIVE, "one", True, True),
        (SessionState.READY, "one", False, True),
        (SessionState.CLOSING, "one", True, True),
        (SessionState.CLOSING, "one", False, False),
        (None, "one", True, True),
        (None, "one", False, False),
        (SessionState.ACTIVE, "another", True, False),
    ],
)
async def test_a_departure_is_told_of_those_who_had_a_seat_there(
    events: Events, state: SessionState | None, server: str, connected: bool, departure: bool
) -> None:
    await events.fleet.server()
    if state is not None:
        await events.fleet.session("s", state, deployment_id=server)
    if connected:
        await events.fleet.world.buckets.active_connections.put("s", "7")
    await events.says(Players(left=["s"]))
    latest = await events.connection("s")
    assert (latest is not None and latest.value is None) is departure


async def test_who_joins_and_leaves_in_one_event_has_left(events: Events) -> None:
    await events.fleet.server()
    await events.fleet.session("s", SessionState.READY)
    await events.says(Players({"s": "7"}, ["s"]))
    latest = await events.connection("s")
    assert latest is not None
    assert latest.value is None


async def test_a_context_names_its_server_whatever_it_says(events: Events) -> None:
    await events.fleet.server()
    await events.says(Context({"deployment_id": "another", "request_id": "another", "digest": "d"}))
    assert events.contexts == [{"deployment_id": "one", "request_id": "one", "digest": "d"}]
