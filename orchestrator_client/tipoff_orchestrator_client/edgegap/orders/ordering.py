"""A deployment is ordered from Edgegap once, whoever asks for it how often.

What is ordered is written down first (book.py). A create whose outcome is not known is looked for in the list before it
is repeated.
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
from tipoff_orchestrator_client.edgegap.api.client import MAX_USERS, EdgegapClient
from tipoff_orchestrator_client.edgegap.api.errors import NoRoom
from tipoff_orchestrator_client.edgegap.environment import Environment
from tipoff_orchestrator_client.edgegap.naming import as_deployment, as_started, as_stopped, tags_of
from tipoff_orchestrator_client.edgegap.orders.stops import Stops
from tipoff_orchestrator_client.edgegap.orders.store import Book
from tipoff_orchestrator_client.edgegap.poller.deployment_list import Listing
from tipoff_orchestrator_client.edgegap.poller.watch import Watch
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.users import addresses
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games
from tipoff_shared.kv.bucket import Entry
from tipoff_shared.nats.connection import Bus
from tipoff_shared.records import EdgegapOrder, OrderState

log = logging.getLogger(__name__)

_TRIES = 8
_LATE = 10.0
"""Seconds after an order in which Edgegap may not know it by its id yet (the create is v2, the status v1: assumed)."""


class Ordering:
    """`clock`: Unix time, by which orders are dated."""

    def __init__(
        self,
        client: EdgegapClient,
        bus: Bus,
        games: Games,
        settings: Settings,
        *,
        book: Book,
        listing: Listing,
        watch: Watch,
        stops: Stops,
        clock: Callable[[], float],
    ) -> None:
        self._client = client
        self._games = games
        self._settings = settings
        self._namespace = bus.settings.namespace
        self._environment = Environment(settings, bus.settings, games)
        self._hooks = settings.hooks(self._namespace)
        self._book = book
        self._listing = listing
        self._watch = watch
        self._stops = stops
        self._clock = clock
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """The one that runs already under this name, or a new one. Raises `OrchestratorError`."""
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
                entry = await self._book.read(spec.deployment_id)
                if entry is not None and (known := await self._ordered(entry, game)) is not None:
                    return known
                if (claim := await self._book.claim(spec, entry, self._clock())) is None:
                    continue  # somebody else is at it, too
                try:
                    request_id = await self._client.create(
                        game.edgegap.application,
                        game.edgegap.version,
                        near=addresses(spec.near, self._settings.default_near)[:MAX_USERS],
                        environment=environment,
                        tags=tags_of(self._namespace, spec.deployment_id, game.key),
                        webhook_url=self._webhook_url(spec.deployment_id),
                    )
                except NoRoom as exc:
                    if exc.request_id:
                        self._stops.later(exc.request_id, "it could not be placed")
                    raise
                except OrchestratorUnavailable as exc:
                    if (
                        not exc.may_have_started
                        or (found := await self._look_for(spec.deployment_id)) is None
                    ):
                        raise
                    log.warning("deployment %s was created all the same: %s", spec.deployment_id, exc)
                    request_id = found.request_id
                return await self._note(claim, request_id)
        raise OrchestratorUnavailable(
            f"{spec.deployment_id} is being ordered by others, too", retryable=True, may_have_started=True
        )

    def _webhook_url(self, deployment_id: str) -> str:
        if self._hooks is None:
            return ""
        return f"{self._settings.hook_url}/hook/{self._hooks.path_name(deployment_id)}"

    async def _ordered(self, entry: Entry[EdgegapOrder], game: Game) -> Deployment | None:
        """What was ordered before under this name; None when nothing has come of it."""
        order = entry.value
        if order.state is OrderState.STOPPED:
            return as_stopped(order)
        if not order.request_id:
            server = await self._listing.find(order.deployment_id)
            if server is None:
                return None
            return await self._note(entry, server.request_id)
        seen = self._watch.news.fresh(order.deployment_id, asyncio.get_running_loop().time())
        if seen is not None:
            return seen
        server = await self._client.status(order.request_id)
        if server is None:
            if self.may_be_late(order):
                return self._watch.follow(as_started(order))
            return self._watch.heard(
                replace(as_started(order), state=RunState.STOPPED, reason="Edgegap has ended it")
            )
        self._watch.news.meet(order.deployment_id)
        return self._watch.follow(
            self._watch.heard(as_deployment(server, order.deployment_id, game.key, game))
        )

    async def _note(self, claim: Entry[EdgegapOrder], request_id: str) -> Deployment:
        """What the order has led to; where it was stopped meanwhile, or led to something else, that is stopped."""
        order = await self._book.note(claim, request_id)
        if order.state is OrderState.STOPPED:
            await self._stops.now(request_id)
            return as_stopped(order)
        if order.request_id != request_id:
            self._stops.later(request_id, f"{order.deployment_id} runs as {order.request_id}")
        return self._watch.follow(self._watch.heard(as_started(order)))

    def may_be_late(self, order: EdgegapOrder) -> bool:
        """Whether Edgegap may only not know it yet."""
        return (
            not self._watch.news.has_met(order.deployment_id) and 0 <= self._clock() - order.tried_at < _LATE
        )

    async def _look_for(self, deployment_id: str) -> Server | None:
        """After a create of unknown outcome; None also when the list cannot be read."""
        try:
            return await self._listing.find(deployment_id)
        except OrchestratorError as exc:
            log.info("whether %s was created is not known: %s", deployment_id, exc)
            return None

    def _lock(self, deployment_id: str) -> asyncio.Lock:
        lock = self._locks.get(deployment_id)
        if lock is None:
            lock = self._locks[deployment_id] = asyncio.Lock()
        return lock
