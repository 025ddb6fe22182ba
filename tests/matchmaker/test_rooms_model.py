"""A match of two with a seat that nobody claims, in many random interleavings, in virtual time (simulation.py)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator

import pytest

from tests.matchmaker.simulation import VirtualLoop, run_world
from tests.matchmaker.test_matchmaker_model import Player, World
from tipoff_shared.games import Game

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
    await asyncio.sleep(30)  # virtual time
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
