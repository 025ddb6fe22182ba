"""A match of two with a seat that nobody claims, in many random interleavings, in virtual time (simulation.py)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator

import pytest

from tests.matchmaker.simulation import VirtualLoop, crash, run_world
from tests.matchmaker.test_matchmaker_model import Player, World
from tipoff_shared.games import Game
from tipoff_shared.records import SessionRecord, SessionState

pytestmark = pytest.mark.row(91)

CLAIM_TIME = Game("", "").claim_time
ANN, BOB, GHOST = range(3)
INTERLEAVINGS = 100


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def _match(loop: VirtualLoop, seed: int) -> float:
    """Ann, Bob and somebody who never connects ask at random moments, in random order, some of two matchmakers, with
    some servers ready and some to be started; Ann and Bob connect a moment after their answers. Returns how long it
    took until they played each other, from when the third had asked and the seat that nobody claims was promised."""
    dice = random.Random(seed)
    most = dice.randint(1, 4)
    game = Game(
        "duel",
        "1",
        seats=2,
        fill_rooms=True,
        max_deployments=most,
        min_ready=dice.randint(0, min(2, most)),
        orchestrator="fake",
        request_timeout=60,
    )
    world = World(loop, seed, game)
    world.nats.latency = lambda: dice.uniform(0, 0.05) if dice.random() < 0.1 else dice.uniform(0, 0.003)  # type: ignore[method-assign]
    for _ in range(dice.randint(1, 2)):
        world.start()
    await asyncio.sleep(dice.choice((0.0, 3.0, 30.0)))  # virtual time
    spread = dice.choice((0.0, 0.01, 0.5, 5.0))
    asked: dict[int, float] = {}
    here: dict[int, float] = {}

    async def play(number: int) -> None:
        await asyncio.sleep(dice.uniform(0, spread))  # virtual time
        asked[number] = loop.now
        player = world.players[number] = Player()
        await world.play(player, dice.choice(world.living()), broadcast=False)
        if number != GHOST:
            await asyncio.sleep(dice.uniform(0, 0.5))  # virtual time
            world.connect(number)
        here[number] = loop.now

    ghost = world.nats.spawn(play(GHOST))
    async with asyncio.timeout(60):
        await asyncio.gather(play(ANN), play(BOB))
    ghost.cancel()
    assert not world.wrong, world.wrong
    ann, bob = (world.players[number].answers[-1].deployment_id for number in (ANN, BOB))
    assert ann == bob, f"seed {seed}: Ann and Bob are on different servers"
    return max(here[ANN], here[BOB]) - max(
        asked[ANN], asked[BOB], min(here.get(GHOST, 0.0), here[BOB], here[ANN])
    )


@pytest.mark.parametrize("seed", range(INTERLEAVINGS))
def test_a_seat_that_nobody_claims_keeps_no_two_players_apart(seed: int) -> None:
    took = run_world(lambda loop: _match(loop, seed), seed)
    print(f"seed {seed}: Ann and Bob play each other after {took:.1f} s")
    assert took <= CLAIM_TIME + 2, f"seed {seed}"


async def _late_report(loop: VirtualLoop) -> SessionRecord:
    """A matchmaker starts anew when a seat's time is over. Its player connected in time, at a server whose connection
    to NATS is away since before, and comes back after 12 s."""
    world = World(loop, 1, Game("duel", "1", seats=2, orchestrator="fake"))
    world.start()
    await asyncio.sleep(30)  # virtual time
    player = world.players[ANN] = Player()
    await world.play(player, world.living()[0], broadcast=False)
    ready = player.answers[-1]
    server = world.servers[ready.deployment_id]
    await asyncio.sleep(12)  # virtual time
    server.silent = True
    crash(world.living()[0])
    await asyncio.sleep(1)  # virtual time
    world.start()
    await asyncio.sleep(12)  # virtual time
    server.silent = False
    world.connect(ANN)
    await asyncio.sleep(20)  # virtual time
    assert not world.wrong, world.wrong
    record: SessionRecord = world.nats.values("sessions")[ready.session_id]
    return record


def test_a_seat_is_not_taken_from_a_player_whose_server_could_not_report_it_yet() -> None:
    """Only the silence of a server that is known to be connected means something so soon after the start."""
    assert run_world(_late_report, 1).state is SessionState.ACTIVE
