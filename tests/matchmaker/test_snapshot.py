"""What one cycle of the reconciler reads, when it lists sessions, and whom it asks."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import World
from tipoff_matchmaker.reconciler.rules import Connection
from tipoff_orchestrator_client.base import DeploySpec, OrchestratorUnavailable
from tipoff_shared.records import DeploymentState, FleetRecord, SessionState


async def test_it_reads_everything_that_is_written_down_and_runs(fleet: Fleet) -> None:
    await fleet.server(seats={"s": 9e9})
    lease = (await fleet.says()).value
    session = await fleet.session("s", SessionState.ACTIVE)
    connections = fleet.world.buckets.active_connections
    await connections.put("s", "7", server="one")
    await connections.put("t", "8")
    await connections.delete("t")
    left = await connections.latest("t")
    assert left is not None
    reservations = FleetRecord("arena", "1", {"one": 1.0})
    await fleet.world.buckets.fleets.put("arena.1", reservations)
    snapshot = await fleet.parts.reader.read(True)
    assert snapshot.before == snapshot.after == {"one": fleet.record()}
    assert snapshot.leases == {"one": lease}
    assert snapshot.sessions == {"s": session}
    assert snapshot.connections == {"s": Connection("7", "one")}
    assert snapshot.departures == {"t": left.revision}
    assert snapshot.fleets == {"arena.1": reservations}
    assert list(snapshot.listed["fake"] or {}) == ["one"]
    assert snapshot.now == pytest.approx(time.time(), abs=20)
    assert not snapshot.settled
    assert not snapshot.deaf
    assert not snapshot.lost
    assert [game.name for game in snapshot.games.values()] == ["arena"]


async def test_its_two_readings_of_deployments_frame_what_runs(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is planned in between is in the second only, one that is gone in the first only."""
    await fleet.server(id="gone")
    listed = fleet.world.fake.list

    async def meanwhile() -> object:
        await fleet.server(DeploymentState.PLANNED, id="new")
        await fleet.world.buckets.deployments.delete("gone")
        return await listed()

    monkeypatch.setattr(fleet.world.fake, "list", meanwhile)
    snapshot = await fleet.parts.reader.read(True)
    assert list(snapshot.before) == ["gone"]
    assert list(snapshot.after) == ["new"]
    assert fleet.parts.deployments.get("gone") is None, "what is read is learnt"


async def test_sessions_are_listed_at_their_interval(world: World) -> None:
    """Those who do not reconcile list them ten times less often; whoever asks for it sooner gets it."""
    async with world.parts(listing_interval=0.5) as parts:
        reader = parts.reader

        async def lists() -> bool:
            return (await reader.read(False)).sessions is not None

        assert (await reader.read(True)).sessions == {}
        again = await reader.read(True)
        assert again.sessions is None
        assert again.connections is None
        assert again.departures == {}
        reader.list_sessions_next()
        assert (await reader.read(True)).sessions == {}
        await world.eventually(lists, "the interval has passed", timeout=20)
        await asyncio.sleep(0.6)  # the interval is what is measured
        assert (await reader.read(False)).sessions is None


async def test_sessions_of_others_that_ended_are_forgotten_by_a_listing(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[set[str]] = []
    monkeypatch.setattr(fleet.parts.sessions, "listed", lambda entries: listed.append(set(entries)))
    await fleet.session("s", SessionState.READY)
    await fleet.parts.reader.read(False)
    assert listed == [{"s"}]


@pytest.mark.parametrize(
    ("reconciles", "state", "trusted", "asks"),
    [
        (True, DeploymentState.READY, True, True),
        (False, DeploymentState.READY, True, False),
        (False, DeploymentState.READY, False, True),
        (False, DeploymentState.STARTING, False, False),
    ],
)
async def test_orchestrators_are_asked_by_who_must_know(
    fleet: Fleet, reconciles: bool, state: DeploymentState, trusted: bool, asks: bool
) -> None:
    await fleet.server(state, deadline=9e9)
    if trusted:
        fleet.parts.trust.add("one")
    snapshot = await fleet.parts.reader.read(reconciles)
    assert fleet.asked("list") == int(asks)
    assert (snapshot.listed["fake"] is not None) is asks


async def test_an_orchestrator_that_does_not_answer_is_not_an_empty_one(fleet: Fleet) -> None:
    fleet.world.fake.fail("list", OrchestratorUnavailable("away", retryable=True))
    assert (await fleet.parts.reader.read(True)).listed == {"fake": None}


async def test_a_bucket_that_was_lost_is_noticed_and_all_is_listed_again(fleet: Fleet) -> None:
    bus = fleet.world.bus
    await fleet.server()
    await fleet.session("s", SessionState.READY)
    await fleet.world.fake.deploy(DeploySpec("one", "arena", "1", 4))
    assert (await fleet.parts.reader.read(True)).lost == {}
    await bus.js.delete_stream(fleet.world.buckets.deployments.stream)
    snapshot = await fleet.parts.reader.read(True)
    assert list(snapshot.lost) == ["deployments"]
    assert snapshot.sessions is not None, "whatever the interval says"
    assert snapshot.before == {}
    assert fleet.parts.deployments.get("one") is None
