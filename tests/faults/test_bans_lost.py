"""NATS loses the bucket of bans, or an older backup is restored: nobody who is banned comes in for that."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from tests.matchmaker.world import ARENA, World, failed
from tipoff.operate.admin import ban, list_bans
from tipoff.up.embedded_nats import embedded_nats
from tipoff_matchmaker.service import Matchmaker
from tipoff_matchmaker_httpd.server.run import run_httpd
from tipoff_matchmaker_httpd.settings import Settings as HttpdSettings
from tipoff_shared.ban_list import ban_key, new_ban
from tipoff_shared.errors import TipoffError
from tipoff_shared.kv.buckets import create_buckets
from tipoff_shared.messages import SessionReady
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import Ban, Bans, encode
from tipoff_shared.settings import NatsSettings

pytestmark = [pytest.mark.slow, pytest.mark.row(68, 85)]

T = TypeVar("T")
MALLORY, OTHER = "203.0.113.1", "198.51.100.1"
LASTING = msgspec.structs.replace(ARENA, empty_ttl=60)


def banned(subject: str = "203.0.113.0/24", seconds: float = 300) -> Ban:
    return new_ban("address", subject, until=time.time() + seconds, reason="spam")


@asynccontextmanager
async def world_of(settings: NatsSettings) -> AsyncIterator[World]:
    async with connect(settings, name="world") as bus, World(bus, settings) as world:
        yield world


async def knows(world: World, matchmaker: Matchmaker, count: int) -> None:
    bans = matchmaker.parts.ban_follower.bans
    await world.eventually(lambda: _now(len(bans) == count), f"the matchmaker knows of {count}")


async def _now(value: T) -> T:
    return value


async def written(world: World) -> set[str]:
    """The bans that NATS has."""
    try:
        return {one.subject for one in await list_bans(world.bus, time.time())}
    except TipoffError:
        return set()


async def is_refused(world: World, address: str = MALLORY) -> bool:
    return failed(await (await world.ask(client_ip=address)).end()).code == 403


async def test_bans_of_a_lost_bucket_stay_in_force_and_are_written_back(
    settings: NatsSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """With their ends; it is said in the log and by the status. One that is lifted later stays lifted."""
    async with world_of(settings) as world, world.matchmaker(LASTING) as matchmaker:
        lasting, short = banned(), banned("192.0.2.1", seconds=4)
        for one in (lasting, short):
            await ban(world.bus, one)
        await knows(world, matchmaker, 2)
        await world.bus.js.delete_stream(f"KV_{world.bus.subjects.bucket('bans')}")
        assert await is_refused(world)
        await world.eventually(lambda: _has(world, "203.0.113.0/24"), "it is written back", timeout=20)
        assert await is_refused(world)
        assert isinstance(await (await world.ask(client_ip=OTHER)).end(), SessionReady)
        entry = await world.buckets.bans.get(ban_key(lasting))
        assert entry is not None
        assert entry.value.until == lasting.until
        said = [record for record in caplog.records if "NATS has lost the bucket of bans" in record.message]
        assert [record.levelno for record in said] == [logging.ERROR]
        degraded = matchmaker.parts.health.own().degraded
        assert any("tipoff ban list" in problem for problem in degraded)
        await ban(world.bus, lasting, lift=True)
        await world.eventually(
            lambda: _has(world), "the other one is over and this one is lifted", timeout=15
        )
        await world.eventually(lambda: plays(world), "the one who is no longer banned plays")


async def plays(world: World) -> bool:
    return isinstance(await (await world.ask(client_ip=MALLORY)).end(), SessionReady)


async def _has(world: World, *subjects: str) -> bool:
    found = await written(world)
    return set(subjects) <= found if subjects else not found


async def test_bans_that_an_older_backup_lacks_are_written_back(tmp_path: Path) -> None:
    store, backup = tmp_path / "nats", tmp_path / "backup"
    async with embedded_nats(store) as nats, AsyncExitStack() as stack:
        world = await stack.enter_async_context(world_of(nats.settings("old")))
        matchmaker = await stack.enter_async_context(world.matchmaker(LASTING))
        await ban(world.bus, banned("192.0.2.0/24"))
        await knows(world, matchmaker, 1)
        await nats.kill()
        await asyncio.to_thread(shutil.copytree, store / "jetstream", backup)
        await nats.start()
        await world.reconnected()
        for number in range(8):
            await ban(world.bus, banned(f"203.0.113.{number}"))
        await knows(world, matchmaker, 9)
        await nats.kill()
        (store / "jetstream").rename(tmp_path / "newer")
        backup.rename(store / "jetstream")
        await nats.start()
        await world.reconnected()
        everybody = ["192.0.2.0/24", *(f"203.0.113.{number}/32" for number in range(8))]
        await world.eventually(lambda: _has(world, *everybody), "they are written back", timeout=20)
        assert await is_refused(world)


async def test_what_only_an_httpd_knows_is_written_back_by_a_new_matchmaker(settings: NatsSettings) -> None:
    """Every matchmaker that knew of it has ended meanwhile."""
    async with world_of(settings) as world:
        await create_buckets(world.bus)
        one = banned()
        await world.buckets.bans.put(ban_key(one), one, ttl=300)
        async with run_httpd(HttpdSettings.load(port=0, drain_timeout=0.5), settings) as httpd:
            bans = httpd.state.bans.bans
            await world.eventually(lambda: _now(len(bans) == 1), "httpd knows of it")
            await asyncio.sleep(6)  # so much younger is a bucket that was made anew
            await world.bus.js.delete_stream(f"KV_{world.bus.subjects.bucket('bans')}")
            async with world.matchmaker(LASTING):
                await world.eventually(lambda: _has(world, one.subject), "it is written back", timeout=20)
                assert len(bans) == 1
                assert await is_refused(world)


async def test_nobody_bans_by_saying_that_a_ban_was_lost(settings: NatsSettings) -> None:
    """While nothing is lost, a ban that is missing is one that was lifted."""
    async with world_of(settings) as world, world.matchmaker(LASTING) as matchmaker:
        for body in (encode(Bans([banned()])), b"garbage", encode(Bans([Ban("address", "no address")]))):  # type: ignore[arg-type] # as on the wire
            await world.bus.publish(world.bus.subjects.known_bans, body)
        await world.bus.flush()
        assert isinstance(await (await world.ask(client_ip=MALLORY)).end(), SessionReady)
        assert await written(world) == set()
        assert len(matchmaker.parts.ban_follower.bans) == 0
