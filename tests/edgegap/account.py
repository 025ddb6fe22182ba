"""An account at Edgegap in memory, with a clock that tests move: for what an orchestrator makes of each answer.

Real are NATS, the orders in it, and everything of ours above `EdgegapClient`.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

from tests.edgegap.edgegap_world import sleeper
from tests.matchmaker.world import games_of
from tests.polling import eventually
from tipoff_orchestrator_client.base import DeploySpec
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.naming import tags_of
from tipoff_orchestrator_client.edgegap.orchestrator import EdgegapOrchestrator
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.games import Game
from tipoff_shared.kv.buckets import Buckets, create_buckets
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import EdgegapOrder

GAME = sleeper()
WALL = 1_700_000_000.0


def spec(deployment_id: str = "arena-1", **more: Any) -> DeploySpec:
    return DeploySpec(deployment_id, "arena", "1", 4, **more)


class Account:
    """Edgegap, as `EdgegapClient` shows it. Servers begin in the state that a status shows while they start."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.servers: dict[str, Server] = {}
        self.unlisted: set[str] = set()
        """Servers that the list does not show, though their status is known."""
        self.unknown: set[str] = set()
        """Servers that the list shows, though their status is not known."""
        self.calls: list[tuple[str, Any]] = []
        """Name and argument of each call, in order."""
        self.errors: dict[str, list[Exception]] = {}
        """What the next calls with this name raise."""
        self.after_error = False
        """Whether a create that raises is carried out all the same."""
        self.status_is_free = True
        self.gate: asyncio.Event | None = None
        """Creates wait for it."""

    def add(self, deployment_id: str = "arena-1", **state: Any) -> str:
        """A server with our tags that runs; its request id."""
        return self._add(tags_of(self.namespace, deployment_id, GAME.key), **{"running": True, **state})

    def _add(self, tags: Iterable[str], **state: Any) -> str:
        request_id = f"r{len(self.servers) + 1}"
        self.servers[request_id] = Server(request_id, tags=tuple(tags), **{"running": False, **state})
        return request_id

    def becomes(self, request_id: str, **state: Any) -> None:
        self.servers[request_id] = dataclasses.replace(self.servers[request_id], **state)

    def forgets(self, request_id: str) -> None:
        del self.servers[request_id]

    def called(self, name: str) -> list[Any]:
        """The arguments of the calls with this name."""
        return [argument for called, argument in self.calls if called == name]

    def _call(self, name: str, argument: Any = None) -> None:
        self.calls.append((name, argument))
        if self.errors.get(name):
            raise self.errors[name].pop(0)

    async def create(self, application: str, version: str, **options: Any) -> str:
        if self.after_error:
            self._add(options["tags"])
        self._call("create", {"application": application, "version": version, **options})
        if self.gate is not None:
            await self.gate.wait()
        return self._add(options["tags"])

    async def status(self, request_id: str) -> Server | None:
        self._call("status", request_id)
        return None if request_id in self.unknown else self.servers.get(request_id)

    async def stop(self, request_id: str) -> None:
        self._call("stop", request_id)

    async def deployments(self) -> list[Server]:
        self._call("list")
        return [server for id, server in self.servers.items() if id not in self.unlisted]


class Clock:
    """Both clocks of the orchestrators: seconds since the test began."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return 5000.0 + self.seconds

    def wall(self) -> float:
        return WALL + self.seconds


class AccountWorld:
    """The account, the clock, and orchestrators as several matchmakers have them."""

    def __init__(self, bus: Bus, buckets: Buckets) -> None:
        self.bus = bus
        self.buckets = buckets
        self.account = Account(bus.settings.namespace)
        self.clock = Clock()
        self._stack = AsyncExitStack()

    def orchestrator(self, *games: Game, skew: float = 0.0, **settings: Any) -> EdgegapOrchestrator:
        """Closed at the end. `skew`: seconds that its wall clock is ahead."""
        given = {
            "nats_user": "gameserver",
            "nats_password": "theirs",
            "poll_first": 0.01,
            "poll_slowest": 0.02,
            **settings,
        }
        made = EdgegapOrchestrator(
            cast(EdgegapClient, self.account),
            self.bus,
            games_of(*(games or (GAME,))),
            Settings(**given),
            clock=lambda: self.clock.wall() + skew,
            monotonic=self.clock.monotonic,
        )
        self._stack.push_async_callback(made.close)
        return made

    async def order(self, deployment_id: str = "arena-1") -> EdgegapOrder | None:
        entry = await self.buckets.edgegap_orders.get(deployment_id)
        return None if entry is None else entry.value

    async def write(self, order: EdgegapOrder) -> None:
        await self.buckets.edgegap_orders.put(order.deployment_id, order)

    async def stopped(self, *request_ids: str) -> None:
        """Wait until exactly these were told to stop, once each."""
        await eventually(
            lambda: sorted(self.account.called("stop")) == sorted(request_ids), "they are stopped", 2
        )

    @classmethod
    @asynccontextmanager
    async def running(cls, bus: Bus) -> AsyncIterator[AccountWorld]:
        world = cls(bus, await create_buckets(bus))
        async with world._stack:
            yield world
