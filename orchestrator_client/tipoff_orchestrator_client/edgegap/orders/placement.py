"""Places the order of each deployment at Edgegap once, however often and by however many matchmakers it is asked for.

The order is written before it is placed (store.py). A create of unknown outcome is looked for in the list before it is
repeated.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from dataclasses import replace

from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.api.client import MAX_USERS, EdgegapClient, public_addresses
from tipoff_orchestrator_client.edgegap.api.errors import NoRoom
from tipoff_orchestrator_client.edgegap.environment import Environment
from tipoff_orchestrator_client.edgegap.naming import as_deployment, as_started, as_stopped, tags_of
from tipoff_orchestrator_client.edgegap.orders.stop_requests import StopRequests
from tipoff_orchestrator_client.edgegap.orders.store import OrderStore
from tipoff_orchestrator_client.edgegap.poller.deployment_list import DeploymentList
from tipoff_orchestrator_client.edgegap.poller.status_cache import StatusCache
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games
from tipoff_shared.kv.bucket import Entry
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import EdgegapOrder, OrderState

log = logging.getLogger(__name__)

_TRIES = 8
LATE = 10.0
"""Seconds after an order in which Edgegap may not know its id yet: the create is v2, the status v1 (A: new-known)."""


class OrderPlacement:
    """Places orders; all parameters belong to the caller. `clock`: Unix time, in which orders are dated."""

    def __init__(
        self,
        client: EdgegapClient,
        bus: Bus,
        games: Games,
        settings: Settings,
        *,
        orders: OrderStore,
        listing: DeploymentList,
        status: StatusCache,
        stops: StopRequests,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._games = games
        self._default_near = settings.default_near
        self._namespace = bus.settings.namespace
        self._environment = Environment(settings, bus.settings, games)
        self._webhook_url = settings.webhook_urls(self._namespace)
        self._orders = orders
        self._listing = listing
        self._status = status
        self._stops = stops
        self._clock = clock
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """The deployment that was ordered under this id before, or a new one. Raises `OrchestratorError`."""
        game = self._games.get(spec.game, spec.version)
        if game is None or game.edgegap is None:
            raise NotConfigured(
                f"games.toml has no [game.edgegap] for {spec.game!r} version {spec.version!r}"
            )
        try:
            environment = self._environment.of(spec, game)
        except ConfigError as exc:
            raise NotConfigured(str(exc)) from exc
        async with self._lock(spec.deployment_id):
            for _ in range(_TRIES):
                entry = await self._orders.get(spec.deployment_id)
                if entry is not None and (known := await self._ordered(entry, game)) is not None:
                    return known
                if (claim := await self._orders.claim(spec, entry, self._clock())) is None:
                    continue  # another matchmaker orders it, too
                try:
                    request_id = await self._client.create(
                        game.edgegap.application,
                        game.edgegap.version,
                        near=public_addresses(spec.near, self._default_near)[:MAX_USERS],
                        environment=environment,
                        tags=tags_of(self._namespace, spec.deployment_id, game.key),
                        webhook_url=self._webhook_url(spec.deployment_id),
                    )
                except NoRoom as exc:
                    if exc.request_id:
                        self._stops.stop_soon(exc.request_id, "no location took it")
                    raise
                except OrchestratorUnavailable as exc:
                    if (
                        not exc.may_have_started
                        or (found := await self._look_for(spec.deployment_id)) is None
                    ):
                        raise
                    log.warning("deployment %s was created in spite of an error: %s", spec.deployment_id, exc)
                    request_id = found.request_id
                return await self._note(claim, request_id)
        raise OrchestratorUnavailable(
            f"other matchmakers order {spec.deployment_id}, too", retryable=True, may_have_started=True
        )

    def may_be_late(self, order: EdgegapOrder) -> bool:
        """Whether Edgegap may only not know it yet, when it says that an ordered deployment is unknown."""
        return (
            not self._status.is_confirmed(order.deployment_id)
            and abs(self._clock() - order.tried_at) < LATE  # another matchmaker's clock may be ahead
        )

    async def _ordered(self, entry: Entry[EdgegapOrder], game: Game) -> Deployment | None:
        """The deployment that this order led to; None: it led to none yet."""
        order = entry.value
        if order.state is OrderState.STOPPED:
            return as_stopped(order)
        if not order.request_id:
            server = await self._listing.find(order.deployment_id)
            if server is None:
                return None
            return await self._note(entry, server.request_id)
        if (fresh := self._status.fresh(order.deployment_id)) is not None:
            return fresh
        server = await self._client.status(order.request_id)
        if server is None:
            if self.may_be_late(order):
                return self._status.follow(as_started(order))
            return self._status.hear(
                replace(as_started(order), state=RunState.STOPPED, reason="Edgegap has ended it")
            )
        self._status.confirm(order.deployment_id)
        deployment = as_deployment(server, order.deployment_id, game.key, game)
        return self._status.follow(self._status.hear(deployment))

    async def _note(self, claim: Entry[EdgegapOrder], request_id: str) -> Deployment:
        """Write what the order led to. Where it was stopped meanwhile, or led to another deployment, stop this one."""
        order = await self._orders.note(claim, request_id)
        if order.state is OrderState.STOPPED:
            await self._stops.stop(request_id)
            return as_stopped(order)
        if order.request_id != request_id:
            self._stops.stop_soon(request_id, f"{order.deployment_id} runs as {order.request_id}")
        return self._status.follow(self._status.hear(as_started(order)))

    async def _look_for(self, deployment_id: str) -> Server | None:
        """After a create of unknown outcome; None also when the list cannot be read."""
        try:
            return await self._listing.find(deployment_id)
        except OrchestratorError as exc:
            log.info("whether %s was created is unknown: %s", deployment_id, exc)
            return None

    def _lock(self, deployment_id: str) -> asyncio.Lock:
        lock = self._locks.get(deployment_id)
        if lock is None:
            lock = self._locks[deployment_id] = asyncio.Lock()
        return lock
