"""NATS comes back without its data."""

from __future__ import annotations

from pathlib import Path

import msgspec
import nats.errors
import pytest

from tests.faults.real_servers import real_world
from tests.matchmaker.world import ARENA
from tipoff.up.embedded_nats import embedded_nats
from tipoff_shared.messages import SessionReady

WARM = msgspec.structs.replace(ARENA, min_ready=1, max_deployments=1, empty_ttl=60)


@pytest.mark.slow
async def test_a_nats_that_lost_its_data_is_set_up_again(tmp_path: Path) -> None:
    """A server without a volume comes back empty: buckets are made anew, and players are served again."""
    store = tmp_path / "nats"
    async with embedded_nats(store) as first:
        settings = first.settings("empty")
        async with real_world(settings) as (world, _), world.matchmaker(WARM, orphan_grace=0.5):
            await world.servers_ready(1)
            await first.kill()
            (store / "jetstream").rename(tmp_path / "lost")
            await first.start()

            async def plays() -> bool:
                try:
                    return isinstance(await (await world.ask()).end(timeout=2), SessionReady)
                except (nats.errors.Error, TimeoutError):
                    return False

            await world.eventually(plays, "players are served again", timeout=15)
