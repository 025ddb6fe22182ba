"""One cycle: whoever holds the lease acts, the others only learn; what is too much, or too late, is left out."""

from __future__ import annotations

import asyncio

import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import World
from tipoff_matchmaker.reconciler import actions
from tipoff_shared.errors import Unavailable
from tipoff_shared.messages import Transports, UdpAddress
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import DeploymentState

READY = DeploymentState.READY


class Cycles:
    """Cycles of one reconciler whose actions are written down instead of done."""

    def __init__(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fleet = fleet
        self.done: list[actions.Action] = []
        self.reads = self.ended = 0
        read = fleet.parts.reader.read

        async def execute(action: actions.Action) -> None:
            self.done.append(action)

        async def counted(reconciles: bool) -> object:
            self.reads += 1
            try:
                return await read(reconciles)
            finally:
                self.ended += 1

        monkeypatch.setattr(fleet.parts.executor, "execute", execute)
        monkeypatch.setattr(fleet.parts.reader, "read", counted)

    async def once(self, *, holder: bool) -> None:
        if holder:
            assert await self.fleet.parts.lease.seek()
        await self.fleet.parts.reconciler.once()

    def stopped(self) -> list[str]:
        return [action.deployment_id for action in self.done if isinstance(action, actions.StopServer)]


@pytest.fixture
def cycles(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Cycles:
    return Cycles(fleet, monkeypatch)


async def overdue(fleet: Fleet, *ids: str) -> None:
    """Servers whose start deadline has passed."""
    for id in ids:
        fleet.world.fake.never_ready()
        await fleet.server(DeploymentState.STARTING, id=id, deadline=1.0)


async def test_who_holds_the_lease_acts(cycles: Cycles) -> None:
    await overdue(cycles.fleet, "one")
    await cycles.once(holder=True)
    assert cycles.stopped() == ["one"]


async def test_who_does_not_hold_it_only_learns_where_to_send_players(cycles: Cycles) -> None:
    fleet = cycles.fleet
    at = Transports(udp=UdpAddress("127.0.0.1", 7777))
    await fleet.server(id="lives", boot_id="boot", transports=at)
    await fleet.says("lives", transports=at)
    await fleet.server(id="hangs", boot_id="boot")
    await overdue(fleet, "late")
    for id in ("hangs", "late"):
        fleet.parts.trust.add(id)
    await cycles.once(holder=False)
    assert cycles.done == []
    assert {id: fleet.trusted(id) for id in ("lives", "late")} == {"lives": True, "late": False}


async def test_only_so_many_servers_are_stopped_in_one_cycle(cycles: Cycles) -> None:
    await overdue(cycles.fleet, *"abcde")
    await cycles.once(holder=True)
    assert len(cycles.stopped()) == 3


async def test_what_is_done_itself_is_not_done_twice(cycles: Cycles, monkeypatch: pytest.MonkeyPatch) -> None:
    await overdue(cycles.fleet, "starts", "stops", "other")
    monkeypatch.setattr(cycles.fleet.parts.starter, "is_starting", lambda id: id == "starts")
    monkeypatch.setattr(cycles.fleet.parts.stopper, "is_stopping", lambda id: id == "stops")
    await cycles.once(holder=True)
    assert cycles.stopped() == ["other"]


@pytest.mark.parametrize("how", ["lost", "another turn"])
async def test_a_cycle_ends_where_another_may_have_gone_on(
    cycles: Cycles, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    fleet = cycles.fleet
    await overdue(fleet, "a", "b")

    async def meanwhile(action: actions.Action) -> None:
        cycles.done.append(action)
        if how == "lost":
            await fleet.parts.lease.give_up()
        else:
            fleet.parts.lease.turn += 1

    monkeypatch.setattr(fleet.parts.executor, "execute", meanwhile)
    await cycles.once(holder=True)
    assert len(cycles.done) == 1


async def test_an_action_that_has_to_wait_keeps_none_of_the_others(
    cycles: Cycles, monkeypatch: pytest.MonkeyPatch
) -> None:
    await overdue(cycles.fleet, "a", "b")

    async def waits(action: actions.Action) -> None:
        cycles.done.append(action)
        raise Unavailable("NATS is away")

    monkeypatch.setattr(cycles.fleet.parts.executor, "execute", waits)
    await cycles.once(holder=True)
    assert sorted(cycles.stopped()) == ["a", "b"]


async def test_a_turn_that_begins_lists_all_sessions(cycles: Cycles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each turn; the others have acted in between."""
    listed: list[None] = []
    monkeypatch.setattr(cycles.fleet.parts.reader, "list_sessions_next", lambda: listed.append(None))
    await cycles.once(holder=False)
    assert len(listed) == 0
    await cycles.once(holder=True)
    await cycles.once(holder=True)
    assert len(listed) == 1


@pytest.mark.parametrize("holder", [True, False])
async def test_after_each_cycle_the_planner_looks_at_every_fleet(
    cycles: Cycles, monkeypatch: pytest.MonkeyPatch, holder: bool
) -> None:
    looked: list[None] = []
    monkeypatch.setattr(cycles.fleet.parts.planner, "want_all", lambda: looked.append(None))
    await cycles.once(holder=holder)
    assert len(looked) == 1


async def test_cycles_follow_each_other_and_survive_an_outage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.parts(sweep_interval=0.02) as parts:
        cycles = Cycles(Fleet(world, parts), monkeypatch)
        read, failed = parts.reader.read, 0

        async def away(reconciles: bool) -> object:
            nonlocal failed
            if failed < 2:
                failed += 1
                raise Unavailable("NATS is away")
            return await read(reconciles)

        monkeypatch.setattr(parts.reader, "read", away)
        async with Tasks("loops") as loops:
            loops.start(parts.reconciler.run(), "reconciler")
            await world.eventually(lambda: cycles.reads >= 2, "it goes on")


async def test_after_an_outage_the_next_cycle_begins_at_once_with_a_listing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.parts(sweep_interval=3600) as parts:
        cycles = Cycles(Fleet(world, parts), monkeypatch)
        listed: list[None] = []
        monkeypatch.setattr(parts.reader, "list_sessions_next", lambda: listed.append(None))
        async with Tasks("loops") as loops:
            loops.start(parts.reconciler.run(), "reconciler")
            await asyncio.sleep(0)
            assert cycles.reads == 0
            parts.reconciler.soon()
            await world.eventually(lambda: cycles.ended == 1, "it has begun")
            parts.reconciler.soon()
            await world.eventually(lambda: cycles.ended == 2, "it has begun")
            await asyncio.sleep(0)
            assert cycles.reads == 2, "once for each"
            assert len(listed) == 2
