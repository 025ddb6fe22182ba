"""Tells a filling cache from a leak: thousands of plays in a few minutes, and after each round what is kept.

`python -m tests.soak.plateau [PLAYS [ROUNDS]]` runs a matchmaker in this process with a real nats-server and game
servers that only write what real ones write. It prints one JSON line for each round: the objects that Python's
collector knows, and the resident memory of this process and of nats-server. Bounded caches fill within the first
rounds; a leak never stops.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.matchmaker.world import ARENA, World
from tests.soak.processes import usage
from tipoff.up.embedded_nats import embedded_nats
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionState

GAME = msgspec.structs.replace(ARENA, seats=64, min_ready=1, max_deployments=1, empty_ttl=60)
AT_ONCE = 8
_GONE_TTL = 1.0
"""Seconds for which the records of ended sessions stay."""


async def _plays(world: World, count: int) -> None:
    for _ in range(count):
        ready = await world.play()
        server = world.server_of(ready)
        await server.connect(ready)
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        await server.disconnect(ready)


async def _measure(plays: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as store:
        async with embedded_nats(Path(store) / "nats") as nats:
            settings = nats.settings()
            async with (
                connect(settings, name="plateau") as bus,
                World(bus, settings) as world,
                world.matchmaker(GAME, gone_ttl=_GONE_TTL),
            ):
                for number in range(1, rounds + 1):
                    async with asyncio.TaskGroup() as group:
                        for _ in range(AT_ONCE):
                            group.create_task(_plays(world, plays // AT_ONCE))
                    await world.nothing_is_left(servers=1, timeout=60)
                    await asyncio.sleep(4 * _GONE_TTL)  # in which records expire, and timers end
                    gc.collect()
                    own, other = usage("", os.getpid(), 0), usage("", nats.process.pid, 0)
                    assert own is not None
                    assert other is not None
                    figures = {
                        "plays": number * (plays // AT_ONCE) * AT_ONCE,
                        "objects": len(gc.get_objects()),
                        "matchmaker MB": round(own.rss, 2),
                        "nats-server MB": round(other.rss, 2),
                    }
                    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    asyncio.run(_measure(*(given + [1600, 10][len(given) :])))
