"""A matchmaker's world whose game servers are real ones: they run in this process, and real players connect to them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import nats.errors

from tests.faults.tcp_link import link_to
from tests.gameserver.players import Recorder, UdpPlayer, by_udp
from tests.matchmaker.world import ARENA, KEY, World
from tests.polling import eventually
from tipoff_gameserver import Context, GameServer
from tipoff_matchmaker.service import Matchmaker
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_shared import names
from tipoff_shared.errors import TipoffError
from tipoff_shared.messages import Failed, SessionReady
from tipoff_shared.nats.connection import connect
from tipoff_shared.records import SessionState
from tipoff_shared.secret import Secret
from tipoff_shared.server_events import EventKey
from tipoff_shared.settings import NatsSettings, server_inbox_prefix, server_user


class RealServers:
    """Started and stopped by the world's fake orchestrator. `crash` is a kill -9; `restart` a new boot of the same
    deployment."""

    def __init__(self, world: World, settings: NatsSettings, *, lease_ttl: int) -> None:
        self.world = world
        self.running: dict[str, GameServer] = {}
        self.make_game: Callable[[], Recorder] = Recorder
        self.options: dict[str, Any] = {}
        """Further arguments of the servers to come."""
        self._settings = settings
        self._lease_ttl = lease_ttl
        self._specs: dict[str, DeploySpec] = {}
        self._links: dict[str, AsyncExitStack] = {}
        """Each server has its own link to NATS, which `crash` cuts."""
        self._crashed: list[asyncio.Task[None]] = []
        self._closed = False
        world.fake.on_start = self._start
        world.fake.on_stop = self._stop
        world.fake.on_death = self.crash

    def of(self, ready: SessionReady) -> GameServer:
        return self.running[ready.deployment_id]

    async def _start(self, spec: DeploySpec) -> None:
        self._specs[spec.deployment_id] = spec
        stack = self._links[spec.deployment_id] = AsyncExitStack()
        _, settings = await stack.enter_async_context(link_to(self._settings_of(spec)))
        context = Context(
            spec.deployment_id,
            spec.game,
            spec.version,
            private_key=KEY.of_deployment(spec.deployment_id) if spec.own_key else KEY,
            protocol_id=ARENA.netcode_protocol_id,
            capacity=spec.capacity,
            nats=settings,
            lease_ttl=self._lease_ttl,
            event_key=EventKey.parse(spec.event_key) if spec.event_key else None,
        )
        server = GameServer(self.make_game(), context=context, tick_rate=30, **self.options)
        await server.__aenter__()
        self.running[spec.deployment_id] = server
        if self._closed:
            await self._stop(spec.deployment_id)

    def _settings_of(self, spec: DeploySpec) -> NatsSettings:
        """How the server reaches NATS: as itself, where it has its own password."""
        if not spec.nats_password:
            return self._settings
        return dataclasses.replace(
            self._settings,
            user=server_user(spec.deployment_id),
            password=Secret(spec.nats_password),
            inbox_prefix=server_inbox_prefix(spec.deployment_id),
        )

    async def _stop(self, deployment_id: str) -> None:
        server = self.running.pop(deployment_id, None)
        if server is not None:
            await server.__aexit__(None, None, None)
            await self._links.pop(deployment_id).aclose()

    async def crash(self, deployment_id: str) -> None:
        """Its link to NATS is cut for ever and its players lose it; what it still does has no effect."""
        server = self.running.pop(deployment_id, None)
        if server is None:
            return
        await self._links.pop(deployment_id).aclose()
        for player in server.players.all():
            player.kick()
        self._crashed.append(asyncio.create_task(server.__aexit__(None, None, None)))

    async def restart(self, deployment_id: str) -> GameServer:
        """As a supervisor would after a crash: the same deployment, another boot id."""
        await self.crash(deployment_id)
        await self._start(self._specs[deployment_id])
        return self.running[deployment_id]

    async def close(self) -> None:
        self._closed = True
        for deployment_id in list(self.running):
            await self._stop(deployment_id)
        await asyncio.gather(*self._crashed)


@asynccontextmanager
async def real_world(
    settings: NatsSettings, *, servers_settings: NatsSettings | None = None, lease_ttl: int = 1
) -> AsyncIterator[tuple[World, RealServers]]:
    """`servers_settings`: another way to NATS, for the game servers alone."""
    async with AsyncExitStack() as stack:
        bus = await stack.enter_async_context(connect(settings, name="world"))
        world = await stack.enter_async_context(World(bus, settings))
        servers = RealServers(world, servers_settings or settings, lease_ttl=lease_ttl)
        stack.push_async_callback(servers.close)
        yield world, servers


@asynccontextmanager
async def playing(ready: SessionReady) -> AsyncIterator[UdpPlayer]:
    """A player at the server that the matchmaker has named."""
    async with by_udp(base64.b64decode(ready.token)) as player:
        yield player


@asynccontextmanager
async def active(world: World) -> AsyncIterator[tuple[SessionReady, UdpPlayer]]:
    """One who asked, got a seat, connected, and whom the matchmaker knows to play."""
    ready = await world.play()
    async with playing(ready) as player:
        await world.session_becomes(ready.session_id, SessionState.ACTIVE)
        yield ready, player


async def echoes(player: UdpPlayer, data: bytes = b"still here") -> bool:
    """Whether the server answers this player, who repeats what gets lost."""
    for _ in range(5):
        player.send(data)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while await player.received.get() != data:
                    pass
                return True
    return False


async def connected(world: World, ready: SessionReady) -> bool:
    """Whether its server has written that this player is there; False also while that cannot be read."""
    try:
        return await world.buckets.active_connections.get(ready.session_id) is not None
    except TipoffError:
        return False


async def settled_sweeps(matchmaker: Matchmaker, count: int) -> None:
    """Wait until absence means something to the matchmaker, then reconcile that often."""
    await eventually(lambda: matchmaker.parts.deadlines.settled, "the matchmaker settles", 10)
    for _ in range(count):
        await matchmaker.parts.reconciler.once()


async def seat_within(world: World, timeout: float) -> SessionReady:
    """A seat for one who asks with the same request id until there is an answer, as httpd and clients do; and with a
    new one when the answer is that the old one has ended, as a player who tries again does."""
    request_id = names.new_request_id()
    end = time.monotonic() + timeout
    while True:
        try:
            answer = await (await world.ask(request_id=request_id)).end(timeout=3)
            if isinstance(answer, SessionReady):
                return answer
            if isinstance(answer, Failed) and answer.code == 409:
                request_id = names.new_request_id()
        except (TimeoutError, nats.errors.Error) as exc:
            answer = Failed(503, f"no answer: {str(exc) or type(exc).__name__}")
        assert time.monotonic() < end, f"no seat within {timeout} s: {answer}"
        await asyncio.sleep(0.2)  # as a player does
