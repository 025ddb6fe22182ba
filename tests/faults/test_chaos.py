"""200 bots come and go while matchmakers and NATS are killed: each plays or is told why, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.arena_servers import arena_toml
from tests.e2e.steps import pids_of
from tests.polling import eventually
from tipoff.testing import RunningUp, running_up
from tipoff_client_sdk import connect
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.buckets import declarations
from tipoff_shared.nats.connection import connect as connect_nats

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(240)]

BOTS = 200
SECONDS = 35.0
DEADLINE = 30.0
GAMES = arena_toml(
    seats=64,
    min_ready=1,
    max_deployments=8,
    empty_ttl=2,
    claim_time=10,
    token_timeout=5,
    tick_rate=10,
)


async def bot(url: str, ends: float, seed: int, outcomes: Counter[str]) -> None:
    """Plays for a few seconds, again and again until `ends` (monotonic); counts how each play came out."""
    dice = random.Random(seed)
    while time.monotonic() < ends:
        began = time.monotonic()
        try:
            async with asyncio.timeout(DEADLINE + 5):
                async with connect(url, game="arena", version="1", timeout=DEADLINE) as player:
                    outcomes["played"] += 1
                    try:
                        async with asyncio.timeout(dice.uniform(0.5, 6)):
                            async for _ in player:
                                pass
                    except TimeoutError:
                        pass  # it has played enough
        except TipoffError as exc:
            outcomes[f"{exc.code}"] += 1
            await asyncio.sleep(exc.retry_after or dice.uniform(0.2, 1))  # as a player would
        except TimeoutError:
            outcomes[f"no answer after {time.monotonic() - began:.0f} s"] += 1


async def havoc(up: RunningUp, ends: float) -> None:
    """A matchmaker is killed every ten seconds, NATS once in the middle; `up` starts them again."""
    dice = random.Random(1)
    killed_nats = False
    half = (time.monotonic() + ends) / 2
    while time.monotonic() < ends:
        await asyncio.sleep(10)  # the fault's own rhythm
        matchmakers = list(pids_of(up.state_dir, "-m tipoff_matchmaker "))
        if matchmakers:
            os.kill(dice.choice(matchmakers), signal.SIGKILL)
        if not killed_nats and time.monotonic() > half:
            killed_nats = True
            for pid in pids_of(up.state_dir, "nats-server"):
                os.kill(pid, signal.SIGKILL)


DURABLE = {"matchmaker-connections", "matchmaker-leases", "api-deleter-1"}


async def orphans(up: RunningUp) -> list[str]:
    """Consumers that are neither the matchmakers' durable ones nor have a reader waiting at them."""
    async with connect_nats(up.nats_settings, name="test") as bus:
        return [
            f"{config.name}/{consumer.name}"
            for config in declarations(bus)
            for consumer in await bus.js.consumers_info(config.name or "")
            if consumer.name not in DURABLE and not consumer.num_waiting
        ]


async def test_every_bot_plays_or_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    """A matchmaker dies every 10 s, NATS once; 60 s later: no session, no seat, one server, no consumer more."""
    games = tmp_path / "games.toml"
    games.write_text(GAMES)
    arguments = ("--matchmakers", "2", "--httpds", "2")
    async with running_up(tmp_path / "state", games=games, arguments=arguments) as up:
        ends = time.monotonic() + SECONDS
        outcomes: Counter[str] = Counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(havoc(up, ends))
            for seed in range(BOTS):
                group.create_task(bot(up.url, ends, seed, outcomes))
        print("outcomes", dict(outcomes))
        assert not [name for name in outcomes if name.startswith("no answer")]
        assert outcomes["played"] > BOTS

        async def given_back() -> bool:
            status = await up.status()
            servers = [d for d in status["deployments"] if d["state"] != "gone"]
            return (
                not status["sessions"]
                and not status["connections"]
                and not any(d["seats"] for d in servers)
                and [d["state"] for d in servers] == ["ready"]
            )

        try:
            await eventually(given_back, "everything given back", 60)
        except BaseException:
            print(await up.status())
            raise

        async def no_orphans() -> bool:
            return not await orphans(up)

        await eventually(no_orphans, "every consumer has its reader", 60)
