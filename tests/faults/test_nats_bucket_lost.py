"""NATS loses a bucket, or all of them, while people play: nobody is disturbed, and the records are rebuilt."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from tests.faults.real_servers import RealServers, active, echoes, real_world, seat_within, settled_sweeps
from tests.gameserver.players import UdpPlayer
from tests.matchmaker.world import ARENA, World
from tipoff.up.embedded_nats import embedded_nats
from tipoff_matchmaker.service import Matchmaker
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.bucket import BucketAge
from tipoff_shared.messages import SessionReady
from tipoff_shared.records import DeploymentState, SessionState
from tipoff_shared.settings import NatsSettings

pytestmark = pytest.mark.row(85)

TWO_SERVERS = msgspec.structs.replace(ARENA, seats=3, max_deployments=2, empty_ttl=60)
LIKE_LIFE = {"orphan_grace": 10.0, "lease_grace": 6.0}
"""Longer than a game server takes to report again, as by default."""

KINDS = (
    ("sessions",),
    ("deployments",),
    ("fleets",),
    ("gameservers",),
    ("active_connections",),
    ("connect_tokens",),
    ("matchmakers",),
    ("sessions", "deployments"),
    ("deployments", "fleets", "gameservers"),
    ("sessions", "active_connections"),
)


async def lose(world: World, buckets: Sequence[str]) -> None:
    for bucket in buckets:
        await world.bus.js.delete_stream(f"KV_{world.bus.subjects.bucket(bucket)}")


class Playing:
    """Four players on two servers, and what is written down of them."""

    def __init__(self, world: World, servers: RealServers, matchmaker: Matchmaker) -> None:
        self.world, self.servers, self.matchmaker = world, servers, matchmaker
        self.players: list[tuple[SessionReady, UdpPlayer]] = []

    async def begin(self, stack: AsyncExitStack) -> None:
        for _ in range(4):
            self.players.append(await stack.enter_async_context(active(self.world)))
        assert len(self.servers.running) == 2

    async def is_written_down(self) -> bool:
        """Each session is active on its server, and sits there; the servers are ready."""
        try:
            deployments = await self.world.buckets.deployments.list()
            sessions = await self.world.buckets.sessions.list()
        except TipoffError:
            return False
        for ready, _ in self.players:
            session, server = sessions.get(ready.session_id), deployments.get(ready.deployment_id)
            if session is None or server is None or ready.session_id not in server.value.seats:
                return False
            if (session.value.state, server.value.state) != (SessionState.ACTIVE, DeploymentState.READY):
                return False
            if (session.value.deployment_id, session.value.client_id) != (
                ready.deployment_id,
                ready.client_id,
            ):
                return False
        return True

    async def goes_on(self) -> None:
        """Rebuilt, and still so when silence means something again; nobody was interrupted; the next player gets the
        free seat, and a seat that becomes free is found."""
        running = set(self.servers.running)
        await self.world.eventually(self.is_written_down, "all is written down again", timeout=25)
        await settled_sweeps(self.matchmaker, 4)
        assert await self.is_written_down()
        assert set(self.servers.running) == running
        for _, player in self.players:
            assert await echoes(player)
        await self.world.eventually(self._is_trusted, "the servers get players", timeout=10)
        newcomer = await seat_within(self.world, 10)
        assert newcomer.deployment_id in running
        left, leaver = self.players.pop()
        leaver.leave()

        async def is_free() -> bool:
            record = await self.world.buckets.deployments.get(left.deployment_id)
            return record is not None and left.session_id not in record.value.seats

        await self.world.eventually(is_free, "the seat of the one who left is free", timeout=10)

    def _is_trusted(self) -> bool:
        return all(id in self.matchmaker.parts.trust for id in self.servers.running)


@pytest.mark.slow
@pytest.mark.parametrize("lost", KINDS, ids=" and ".join)
async def test_a_lost_bucket_disturbs_nobody(settings: NatsSettings, lost: tuple[str, ...]) -> None:
    async with (
        real_world(settings) as (world, servers),
        world.matchmaker(TWO_SERVERS, **LIKE_LIFE) as matchmaker,
        AsyncExitStack() as stack,
    ):
        playing = Playing(world, servers, matchmaker)
        await playing.begin(stack)
        await lose(world, lost)
        await playing.goes_on()


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [True, False], ids=["a running matchmaker", "a new matchmaker"])
async def test_a_store_that_comes_back_empty_disturbs_nobody(tmp_path: Path, at_once: bool) -> None:
    """As after the loss of a volume; also where the matchmaker that finds it empty knows nothing of before."""
    store = tmp_path / "nats"
    async with embedded_nats(store) as nats, AsyncExitStack() as stack:
        settings = nats.settings("empty")
        world, servers = await stack.enter_async_context(real_world(settings))
        async with AsyncExitStack() as first:
            matchmaker = await first.enter_async_context(world.matchmaker(TWO_SERVERS, **LIKE_LIFE))
            playing = Playing(world, servers, matchmaker)
            await playing.begin(stack)
            if not at_once:
                await first.aclose()
            await nats.kill()
            (store / "jetstream").rename(tmp_path / "lost")
            await nats.start()
            if at_once:
                await playing.goes_on()
        if not at_once:
            async with world.matchmaker(TWO_SERVERS, **LIKE_LIFE) as matchmaker:
                playing.matchmaker = matchmaker
                await playing.goes_on()


@pytest.mark.slow
async def test_an_older_backup_disturbs_nobody(tmp_path: Path) -> None:
    """Two play when it is made, two come later, to a server that it does not know either; one who it says plays has
    left since."""
    store, backup = tmp_path / "nats", tmp_path / "backup"
    async with embedded_nats(store) as nats, AsyncExitStack() as stack:
        world, servers = await stack.enter_async_context(real_world(nats.settings("old")))
        matchmaker = await stack.enter_async_context(world.matchmaker(TWO_SERVERS, **LIKE_LIFE))
        playing = Playing(world, servers, matchmaker)
        playing.players = [await stack.enter_async_context(active(world)) for _ in range(2)]
        async with active(world) as (past, _):
            await nats.kill()
            await asyncio.to_thread(shutil.copytree, store / "jetstream", backup)
            await nats.start()
            await world.reconnected()
        await world.session_becomes(past.session_id, SessionState.GONE)
        playing.players += [await stack.enter_async_context(active(world)) for _ in range(2)]
        assert len(servers.running) == 2
        await nats.kill()
        (store / "jetstream").rename(tmp_path / "newer")
        backup.rename(store / "jetstream")
        await nats.start()
        await playing.goes_on()
        await world.session_becomes(past.session_id, SessionState.GONE)


@pytest.mark.parametrize(
    ("now", "back"),
    [
        (BucketAge(1.0, 10), False),
        (BucketAge(1.0, 11), False),
        (BucketAge(1.0, 9), True),
        (BucketAge(2.0, 9), False),
    ],
    ids=["unchanged", "written", "gone back", "made anew"],
)
def test_a_bucket_whose_latest_write_is_older_has_gone_back(now: BucketAge, back: bool) -> None:
    assert now.has_gone_back(BucketAge(1.0, 10)) is back
