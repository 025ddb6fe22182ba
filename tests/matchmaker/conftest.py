"""A small world for matchmakers: real NATS, a fake orchestrator, and stand-ins for gameservers and players."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest

from tests.matchmaker.fleet import Fleet
from tests.matchmaker.world import ARENA, World
from tipoff_shared.nats.connection import connect
from tipoff_shared.settings import NatsSettings


@pytest.fixture
async def world(settings: NatsSettings) -> AsyncIterator[World]:
    """NATS, an orchestrator and gameservers; matchmakers are started by the test."""
    async with connect(settings, name="world") as bus, World(bus, settings) as world:
        yield world


@pytest.fixture
async def fleet(world: World) -> AsyncIterator[Fleet]:
    world.announce = False
    async with world.parts() as parts:
        yield Fleet(world, parts)


@pytest.fixture
async def running(world: World) -> AsyncIterator[Fleet]:
    """Its servers are ready when their orchestrator says that they run."""
    world.announce = False
    ports = world.with_ports(udp=7777)
    async with world.parts(msgspec.structs.replace(ARENA, ready="running"), orchestrator=ports) as parts:
        yield Fleet(world, parts)
