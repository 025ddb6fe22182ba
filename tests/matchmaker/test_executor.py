"""Each action of the reconciler by itself: what it does, and what it leaves alone when the world has moved on."""

from __future__ import annotations

import time

import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import World
from tipoff_matchmaker.deployments.fleet_limit import FleetLimit
from tipoff_matchmaker.reconciler import actions
from tipoff_matchmaker.sessions.state_machine import Ended, ServerGone
from tipoff_orchestrator_client.base import Deployment, DeploySpec, OrchestratorUnavailable, RunState
from tipoff_shared.kv.bucket import Full
from tipoff_shared.messages import Transports, UdpAddress
from tipoff_shared.records import DeploymentRecord, DeploymentState, GameserverLease, LeaseState, SessionState

READY, STARTING, GONE = DeploymentState.READY, DeploymentState.STARTING, DeploymentState.GONE
OVER = (SessionState.CLOSING, SessionState.GONE)
LEASE = GameserverLease(
    "one", "boot", "arena", "1", LeaseState.READY, Transports(udp=UdpAddress("127.0.0.1", 7777)),
    capacity=4, started_at=7.0,
)  # fmt: skip


def found(id: str = "one", **changes: object) -> Deployment:
    fields: dict[str, object] = {"native_id": "n", "host": "127.0.0.1", **changes}
    return Deployment(id, "arena", "1", RunState.RUNNING, **fields)  # type: ignore[arg-type]


async def do(fleet: Fleet, action: actions.Action) -> None:
    await fleet.parts.executor.execute(action)
    await fleet.settled()


async def test_trust(fleet: Fleet) -> None:
    await do(fleet, actions.Trust("one"))
    assert fleet.trusted()


@pytest.mark.parametrize("current", [True, False])
async def test_a_lease_is_followed_as_it_is_now(fleet: Fleet, current: bool) -> None:
    await fleet.server(STARTING, deadline=9e9)
    if current:
        await fleet.says(capacity=2)
    await do(fleet, actions.FollowLease(LEASE))
    assert fleet.record().state is (READY if current else STARTING)
    assert fleet.record().capacity == (2 if current else 4)


async def test_a_server_that_runs_is_marked_ready(running: Fleet) -> None:
    await running.server(STARTING, deadline=9e9)
    running.world.fake.run("one")
    deployment = await running.parts.orchestrators["fake"].get("one")
    assert deployment is not None
    await do(running, actions.MarkReady(deployment))
    assert running.record().state is READY


async def test_where_it_runs_is_recorded(fleet: Fleet) -> None:
    await fleet.server(STARTING, deadline=9e9)
    await do(fleet, actions.RecordPlace(found(proxy="10.0.0.7:80", digest_key="d")))
    record = await fleet.written()
    assert (record.proxy, record.digest_key) == ("10.0.0.7:80", "d")
    await do(fleet, actions.RecordPlace(found("unknown")))


async def test_a_suspicion_is_a_question(fleet: Fleet) -> None:
    await fleet.server(boot_id="boot")
    fleet.parts.trust.add("one")
    await do(fleet, actions.Confirm("one", "no lease"))
    assert not fleet.trusted()
    assert fleet.asked() == 1


async def test_a_server_is_stopped_and_gets_no_players_before(fleet: Fleet) -> None:
    await fleet.server(seats={"s": 9e9})
    fleet.parts.trust.add("one")
    await fleet.parts.executor.execute(actions.StopServer("one", "no lease"))
    assert not fleet.trusted()
    await fleet.settled()
    assert (await fleet.written()).reason == "no lease"


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("seats", [{}, {"s": 9e9}])
async def test_a_server_is_stopped_only_if_it_is_still_empty(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, seats: dict[str, float], full: bool
) -> None:
    """Also where the bucket takes nothing longer than what it replaces."""
    await fleet.server(seats=seats)
    if full:
        update = fleet.parts.buckets.deployments.update

        def refused(key: str, value: DeploymentRecord, revision: int, **options: object) -> object:
            if value.state is DeploymentState.DRAINING:
                raise Full("the bucket is full")
            return update(key, value, revision, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(fleet.parts.buckets.deployments, "update", refused)
    await do(fleet, actions.StopIfEmpty("one"))
    record = await fleet.written()
    assert record.state is (READY if seats else GONE)
    if not seats:
        assert record.reason in ("it is not needed", "")


@pytest.mark.parametrize(
    ("state", "stopped"), [(None, True), (GONE, True), (READY, False), (DeploymentState.STOPPING, False)]
)
async def test_an_unknown_server_is_stopped_unless_it_has_a_record_by_now(
    fleet: Fleet, state: DeploymentState | None, stopped: bool
) -> None:
    await fleet.world.fake.deploy(DeploySpec("one", "arena", "1", 4))
    if state is not None:
        record = DeploymentRecord("one", state, "arena", "1", "fake", capacity=4, created_at=1.0)
        await fleet.world.buckets.deployments.create("one", record)
    await do(fleet, actions.StopUnknown("fake", "one"))
    assert fleet.asked("stop") == int(stopped)


async def test_an_unknown_server_that_cannot_be_stopped_is_left_for_later(fleet: Fleet) -> None:
    fleet.world.fake.fail("stop", OrchestratorUnavailable("away", retryable=True))
    await do(fleet, actions.StopUnknown("fake", "one"))
    assert fleet.asked("stop") == 1


@pytest.mark.parametrize("lease", [None, LEASE])
async def test_a_lost_record_is_rebuilt(fleet: Fleet, lease: GameserverLease | None) -> None:
    if lease is not None:
        await fleet.says(started_at=7.0)
    limit = FleetLimit(fleet.world.buckets.fleets)
    await do(fleet, actions.RebuildDeployment("fake", found(proxy="p:1"), {"s": 8e9}, lease))
    record = await fleet.written()
    assert (record.seats, record.proxy, record.capacity) == ({"s": 8e9}, "p:1", 4)
    assert record.state is (STARTING if lease is None else READY)
    expected = pytest.approx(time.time(), abs=20) if lease is None else 7.0
    assert record.created_at == expected
    assert (await limit.read("arena", "1")).deployments == {"one": expected}


@pytest.mark.parametrize("orchestrator", ["fake", "another"])
@pytest.mark.parametrize("game", ["arena", "dropped"])
async def test_only_a_server_of_our_games_and_of_their_orchestrator_is_rebuilt(
    fleet: Fleet, orchestrator: str, game: str
) -> None:
    deployment = Deployment("one", game, "1", RunState.RUNNING, native_id="n")
    await do(fleet, actions.RebuildDeployment(orchestrator, deployment, {}, None))
    there = await fleet.world.buckets.deployments.get("one") is not None
    assert there is (orchestrator == "fake" and game == "arena")


async def test_a_record_that_is_there_again_is_kept(fleet: Fleet) -> None:
    await fleet.server(seats={"t": 7e9})
    await fleet.says()
    await do(fleet, actions.RebuildDeployment("fake", found(), {"s": 8e9}, LEASE))
    record = await fleet.written()
    assert record.seats == {"t": 7e9}
    assert record.boot_id == "boot", "its lease is followed all the same"


async def test_a_lost_session_is_rebuilt_with_its_seat(fleet: Fleet) -> None:
    await fleet.server(boot_id="boot")
    await do(fleet, actions.RebuildSession("s", "77", "one", 8e9))
    session = await fleet.world.session("s")
    assert session is not None
    assert (session.state, session.game, session.version) == (SessionState.ACTIVE, "arena", "1")
    assert (session.client_id, session.deployment_id, session.boot_id) == ("77", "one", "boot")
    assert session.generation == 1
    assert session.owner == ""
    assert session.created_at == pytest.approx(time.time(), abs=20)
    assert (await fleet.written()).seats == {"s": 8e9}
    await do(fleet, actions.RebuildSession("t", "78", "unknown", 8e9))
    assert await fleet.world.session("t") is None


async def test_a_session_that_is_there_again_is_kept(fleet: Fleet) -> None:
    await fleet.server()
    await fleet.session("s", SessionState.READY)
    await do(fleet, actions.RebuildSession("s", "77", "one", 8e9))
    session = await fleet.world.session("s")
    assert session is not None
    assert session.state is SessionState.READY


async def test_reservations(world: World) -> None:
    async with world.parts(clock=lambda: 77.0) as parts:
        fleet = Fleet(world, parts)
        limit = FleetLimit(world.buckets.fleets)
        await do(fleet, actions.Reserve("arena", "1", "one"))
        await do(fleet, actions.Reserve("arena", "1", "two"))
        assert (await limit.read("arena", "1")).deployments == {"one": 77.0, "two": 77.0}
        await do(fleet, actions.Unreserve("arena", "1", "one"))
        assert (await limit.read("arena", "1")).deployments == {"two": 77.0}


async def test_seats_without_a_session_are_free_again(world: World) -> None:
    """Those that were taken anew in between stay. A server that gets empty says since when."""
    async with world.parts(clock=lambda: 77.0) as parts:
        fleet = Fleet(world, parts)
        await fleet.server(seats={"s": 5.0, "t": 6.0, "u": 7.0})
        await do(fleet, actions.FreeSeats("one", {"s": 5.0, "t": 5.0}))
        assert (await fleet.written()).seats == {"t": 6.0, "u": 7.0}
        await do(fleet, actions.FreeSeats("one", {"t": 6.0, "u": 7.0}))
        assert (await fleet.written()).empty_since == 77.0
        await do(fleet, actions.FreeSeats("unknown", {"s": 5.0}))


@pytest.mark.parametrize(
    ("event", "closes", "forgets"),
    [
        (ServerGone("one", "gone"), True, True),
        (ServerGone("one", "restarted", living_boot="later"), True, False),
        (ServerGone("another", "gone"), False, False),
        (Ended("enough"), True, False),
    ],
)
async def test_an_event_of_a_session_is_applied(
    fleet: Fleet, event: ServerGone | Ended, closes: bool, forgets: bool
) -> None:
    """A dead server cannot remove its connections; one that lives does."""
    await fleet.server(seats={"s": 9e9})
    await fleet.session("s", SessionState.ACTIVE, boot_id="boot")
    await fleet.world.buckets.active_connections.put("s", "7")
    await do(fleet, actions.ApplyEvent("s", event))
    session = await fleet.world.session("s")
    assert (session is None or session.state in OVER) is closes
    assert (await fleet.world.buckets.active_connections.get("s") is None) is forgets


async def test_a_session_is_checked_and_a_closing_one_released(fleet: Fleet) -> None:
    await fleet.server(seats={"s": 9e9, "t": 9e9})
    await fleet.session("s", SessionState.READY, deadline=1.0)
    closing = await fleet.session("t", SessionState.CLOSING)
    await do(fleet, actions.CheckSession("s"))
    await do(fleet, actions.ReleaseSession(closing))
    assert (await fleet.written()).seats == {}
    for id in ("s", "t"):
        session = await fleet.world.session(id)
        assert session is None or session.state is SessionState.GONE


async def test_connections_that_nobody_removes_are_removed(fleet: Fleet) -> None:
    connections = fleet.world.buckets.active_connections
    await connections.put("s", "7")
    await do(fleet, actions.DropConnection("s"))
    assert await connections.latest("s") is None
    await connections.put("t", "7")
    await connections.delete("t")
    departure = await connections.latest("t")
    assert departure is not None
    await do(fleet, actions.ForgetDeparture("t", departure.revision - 1))
    assert await connections.latest("t") is not None, "a later one is its reader's"
    await do(fleet, actions.ForgetDeparture("t", departure.revision))
    assert await connections.latest("t") is None
