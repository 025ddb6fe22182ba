"""`tipoff rollout`: the servers of a game are replaced one after another, and nobody is dropped."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.matchmaker.world import ARENA, World
from tests.polling import eventually
from tipoff.operate.rollout import Drain, Next, Rollout, roll_out, versions_of
from tipoff_shared.errors import OrchestratorFailed, TipoffError
from tipoff_shared.records import DeploymentRecord, DeploymentState

pytestmark = pytest.mark.row(103)

PLANNED, STARTING, READY = DeploymentState.PLANNED, DeploymentState.STARTING, DeploymentState.READY
DRAINING, GONE = DeploymentState.DRAINING, DeploymentState.GONE
SINCE = 100.0


def _server(name: str, at: float, state: DeploymentState = READY, seats: int = 0) -> DeploymentRecord:
    return DeploymentRecord(
        id=name,
        state=state,
        game="arena",
        version="1",
        orchestrator="fake",
        capacity=2,
        created_at=at,
        seats={f"s{number}": 0.0 for number in range(seats)},
    )


def _of(*servers: DeploymentRecord) -> dict[str, DeploymentRecord]:
    return {server.id: server for server in servers}


def test_a_new_server_is_ready_before_an_old_one_is_drained() -> None:
    """Those without players first."""
    rollout = Rollout(SINCE)
    busy, idle = _server("busy", 1, seats=2), _server("idle", 2)
    assert rollout.next(_of(busy, idle)) is Next.START
    rollout.started("new1")
    assert rollout.next(_of(busy, idle, _server("new1", 101, STARTING))) is Next.WAIT
    new = _server("new1", 101)
    assert rollout.next(_of(busy, idle, new)) == Drain("idle")
    assert rollout.next(_of(busy, new)) is Next.START
    rollout.started("new2")
    assert rollout.next(_of(busy, new, _server("new2", 102))) == Drain("busy")
    drained = msgspec.structs.replace(busy, state=DRAINING)
    records = _of(drained, new, _server("new2", 102))
    assert rollout.next(records) is Next.DONE
    outcome = rollout.outcome("arena", "1", records, "")
    assert (outcome.replaced, outcome.draining, outcome.left) == (2, {"busy": 2}, [])


def test_a_server_that_starts_already_counts_as_the_new_one() -> None:
    """Of an interrupted rollout, or one that players wait for."""
    rollout = Rollout(SINCE)
    assert rollout.next(_of(_server("old", 1), _server("new", 101, PLANNED))) is Next.WAIT
    assert rollout.next(_of(_server("old", 1), _server("new", 101))) == Drain("old")


def test_when_no_further_server_may_be_started_only_one_goes_that_leaves_room_for_players() -> None:
    rollout = Rollout(SINCE)
    full, room = _server("full", 1, seats=2), _server("room", 2, seats=1)
    assert rollout.next(_of(full, room)) is Next.START
    rollout.started("")
    assert rollout.next(_of(full)) is Next.WAIT
    assert rollout.next(_of(full, room)) is Next.START
    rollout.started("")
    # The other one has no room, so nobody could come.
    assert rollout.next(_of(full, room)) is Next.WAIT
    rollout.next(_of(full, room))
    rollout.started("")
    assert rollout.next(_of(full, _server("idle", 3))) == Drain("idle")


def test_a_new_server_that_fails_ends_the_rollout_and_the_old_ones_go_on() -> None:
    rollout = Rollout(SINCE)
    old = _server("old", 1, seats=1)
    rollout.next(_of(old))
    rollout.started("new")
    dead = msgspec.structs.replace(_server("new", 101, GONE), reason="did not start: exited with code 1")
    with pytest.raises(OrchestratorFailed, match="exited with code 1"):
        rollout.next(_of(old, dead))
    assert rollout.outcome("arena", "1", _of(old, dead), "why").left == ["old"]


def _silent(text: str) -> None:
    pass


WARM = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=3)


async def test_players_play_on_while_their_servers_are_replaced(world: World) -> None:
    """A new player comes to a new server; the old one ends with its last player."""
    said: list[str] = []
    async with asyncio.timeout(90), world.matchmaker(WARM):
        ann = await world.play()
        await world.server_of(ann).connect(ann)
        done = await roll_out(world.bus, "arena", "1", timeout=60, say=said.append)
        assert done.problem == ""
        assert done.draining == {ann.deployment_id: 1}
        assert done.left == []
        assert (await world.play()).deployment_id not in {ann.deployment_id, ""}
        assert any("starts" in text for text in said)
        assert ann.deployment_id in world.servers
        old = world.server_of(ann)
        await old.disconnect(ann)

        async def ended() -> bool:
            found = await world.buckets.deployments.get(ann.deployment_id)
            return found is None or found.value.state is GONE

        await eventually(ended, "the old server ends with its last player", 30)


async def test_a_rollout_that_was_interrupted_goes_on_and_replaces_nothing_twice(world: World) -> None:
    """As long as an old server is left; `again` begins another one."""
    async with asyncio.timeout(90), world.matchmaker(WARM):
        ann = await world.play()
        await world.server_of(ann).connect(ann)
        first = await roll_out(world.bus, "arena", "1", timeout=60, say=_silent)
        assert first.draining == {ann.deployment_id: 1}

        async def new_servers() -> set[str]:
            listed = await world.buckets.deployments.list()
            return {entry.key for entry in listed.values() if entry.value.state is READY}

        before = await new_servers()
        said: list[str] = []
        second = await roll_out(world.bus, "arena", "1", timeout=60, say=said.append)
        assert (second.draining, said) == ({ann.deployment_id: 1}, [])
        assert await new_servers() <= before
        third = await roll_out(world.bus, "arena", "1", again=True, timeout=60, say=said.append)
        assert third.problem == ""
        assert not before & await new_servers()


async def test_with_one_server_at_most_its_player_is_not_disturbed(world: World) -> None:
    """What cannot be done is said: nobody could come meanwhile."""
    one = msgspec.structs.replace(ARENA, min_ready=0, max_deployments=1)
    async with asyncio.timeout(90), world.matchmaker(one):
        ann = await world.play()
        await world.server_of(ann).connect(ann)
        done = await roll_out(world.bus, "arena", "1", timeout=1, say=_silent)
        assert done.left == [ann.deployment_id]
        assert "max_deployments is reached" in done.problem
        assert await versions_of(world.bus, "arena") == ["1"]
        with pytest.raises(TipoffError, match="there is no game pong 1"):
            await roll_out(world.bus, "pong", "1", timeout=1, say=_silent)
