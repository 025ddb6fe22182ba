"""One matchmaker at a time reconciles."""

from __future__ import annotations

import asyncio
import time

import msgspec

from tests.matchmaker.world import ARENA, World
from tipoff_matchmaker.reconciler.lease import KEY, ReconcilerLease

WARM = msgspec.structs.replace(ARENA, min_ready=1, empty_ttl=60)


async def test_one_of_many_has_it(world: World) -> None:
    """Ten ask for it at once, again and again: one gets it and keeps it."""
    leases = [ReconcilerLease(world.buckets.matchmakers, f"m{number}", ttl=5) for number in range(10)]
    first = await asyncio.gather(*(lease.seek() for lease in leases))
    assert sum(first) == 1
    for _ in range(3):
        assert await asyncio.gather(*(lease.seek() for lease in leases)) == first
    assert [lease.turn for lease in leases] == [int(had) for had in first]


async def test_given_up_it_is_free_at_once(world: World) -> None:
    """A matchmaker that ends does not let the next one wait; it does not ask for it again."""
    one, other = (ReconcilerLease(world.buckets.matchmakers, name, ttl=60) for name in ("one", "other"))
    assert await one.seek()
    assert not await other.seek()
    await one.give_up()
    assert not one.held
    assert await other.seek()
    assert not await one.seek()


async def test_a_holder_that_says_nothing_more_loses_it(world: World) -> None:
    """By its own clock no later than by the store's; another one has it then, and the first does not get it back."""
    one, other = (ReconcilerLease(world.buckets.matchmakers, name, ttl=1) for name in ("one", "other"))
    assert await one.seek()

    async def taken() -> bool:
        assert not (one.held and other.held)
        return await other.seek()

    await world.eventually(taken, "the other one has it")
    assert not one.held
    assert not await one.seek()
    assert one.turn == 1


async def test_a_write_of_its_own_that_seemed_lost_is_known_again(world: World) -> None:
    """The answer to a renewal was lost, but it was written: it is still ours."""
    lease = ReconcilerLease(world.buckets.matchmakers, "one", ttl=5)
    assert await lease.seek()
    await world.buckets.matchmakers.put(KEY, "one", ttl=5)
    assert await lease.seek()
    assert lease.turn == 1


async def test_only_the_holder_asks_what_runs_and_acts(world: World) -> None:
    """Of two, one lists what the orchestrator runs; when it ends, the other one does at once."""
    async with world.matchmaker(WARM, sweep_interval=0.1) as first:
        await world.servers_ready(1)
        async with world.matchmaker(WARM, sweep_interval=0.1, orchestrator=None) as second:
            assert first.parts.lease.held
            assert not second.parts.lease.held
            ready = await world.play()
            await first.parts.lease.give_up()

            async def taken_over() -> bool:
                return second.parts.lease.held

            began = time.monotonic()
            await world.eventually(taken_over, "the second reconciles")
            assert time.monotonic() - began < 1
            # What only a reconciler finds: a seat whose session is not there.
            entry = await world.buckets.deployments.get(ready.deployment_id)
            assert entry is not None
            seats = {**entry.value.seats, "snobody": time.time() - 60}
            await world.buckets.deployments.update(
                ready.deployment_id, msgspec.structs.replace(entry.value, seats=seats), entry.revision
            )
            await world.eventually(lambda: world.seats_are([ready.session_id]), "the seat is free")


async def test_one_that_does_not_reconcile_sends_players_to_living_servers(world: World) -> None:
    """It starts beside a fleet that runs: it knows which servers live without being the one who reconciles."""
    async with world.matchmaker(WARM):
        await world.servers_ready(1)
        async with world.matchmaker(WARM) as second:
            assert not second.parts.lease.held
            (server,) = await world.servers_ready(1)
            assert server.id in second.parts.trust
