"""Implements the orchestrator `edgegap`: each of our deployments is one v2 deployment, found by tags, ordered once.

deploy ──> orders/placement: write the order, create, write its outcome
get    ──> the order's status at Edgegap
list   ──> Edgegap's list against the orders (orders/order_diff): adopt, stop what should not run, poll suspects
stop   ──> write that it is to stop, then stop it
events ──> poller/poll_loop: webhooks, and polls as a back-up
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace

from tipoff_orchestrator_client.base import Deployment, DeploySpec, OrchestratorError, RunState
from tipoff_orchestrator_client.edgegap import ORCHESTRATOR
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.naming import as_deployment, as_started, as_stopped, game_in
from tipoff_orchestrator_client.edgegap.orders.order_diff import COMING, compare, suspects
from tipoff_orchestrator_client.edgegap.orders.placement import OrderPlacement
from tipoff_orchestrator_client.edgegap.orders.stop_requests import STOPPING, StopRequests
from tipoff_orchestrator_client.edgegap.orders.store import OrderStore
from tipoff_orchestrator_client.edgegap.poller.deployment_list import DeploymentList
from tipoff_orchestrator_client.edgegap.poller.poll_loop import PollLoop, poll_each
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import BY_STATUS
from tipoff_orchestrator_client.edgegap.poller.status_cache import StatusCache
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.games import Games
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import EdgegapOrder, OrderState

log = logging.getLogger(__name__)


class EdgegapOrchestrator:
    """Made by `open_edgegap`. `client` and `bus` belong to the caller; `close` ends only this object's tasks. `clock`:
    Unix time, in which orders are dated; `monotonic`: by which what was heard and sent ages."""

    def __init__(
        self,
        client: EdgegapClient,
        bus: Bus,
        games: Games,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = monotonic
        self._client = client
        self._games = games
        self._clock = clock
        self._namespace = bus.settings.namespace
        self._tasks = Tasks(ORCHESTRATOR)
        self._orders = OrderStore(bus)
        self._listing = DeploymentList(client, self._namespace)
        self._stops = StopRequests(client, self._tasks, monotonic=monotonic)
        self._poll = PollLoop(bus, settings, "deployment")
        self._status = StatusCache(self._poll, monotonic=monotonic)
        self._placement = OrderPlacement(
            client,
            bus,
            games,
            settings,
            orders=self._orders,
            listing=self._listing,
            status=self._status,
            stops=self._stops,
            clock=clock,
        )
        self._polling: asyncio.Task[None] | None = None
        """The poll loop, while there is a listener to `events`."""
        self._polled_at: dict[str, float] = {}
        """Deployment id -> monotonic time at which its status was last read."""

    @property
    def name(self) -> str:
        """`edgegap`."""
        return ORCHESTRATOR

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """See `Orchestrator`."""
        return replace(await self._placement.deploy(spec), own_key=spec.own_key)

    async def get(self, deployment_id: str) -> Deployment | None:
        """See `ServerDirectory`. A running deployment may be half a second old."""
        fresh = self._status.fresh(deployment_id)
        if fresh is not None and fresh.state is RunState.RUNNING:
            return fresh
        entry = await self._orders.get(deployment_id)
        if entry is None:
            return await self._find(deployment_id)
        order = entry.value
        if order.state is OrderState.STOPPED:
            return as_stopped(order)
        if order.request_id:
            return await self._read_status(order)
        if (found := await self._find(deployment_id)) is not None:
            await self._orders.adopt(deployment_id, found.native_id)
            return found
        return as_started(order) if self._clock() - order.tried_at < COMING else None

    async def _find(self, deployment_id: str) -> Deployment | None:
        """By its tag in Edgegap's list: whose order is lost, or has no outcome yet."""
        server = await self._listing.find(deployment_id)
        if server is None:
            return None
        game = game_in(server.tags, self._games.all())
        return as_deployment(server, deployment_id, game.key if game is not None else ("", ""), game)

    async def _read_status(self, order: EdgegapOrder) -> Deployment | None:
        """Its status at Edgegap, which listeners get where it has changed."""
        self._polled_at[order.deployment_id] = self._now()
        server = await self._client.status(order.request_id)
        if server is None:
            if self._placement.may_be_late(order):
                return as_started(order)
            reason = "Edgegap no longer knows it"
            await self._orders.note_ended(order, reason)
            self._status.hear(replace(as_started(order), state=RunState.STOPPED, reason=reason))
            return None
        self._status.confirm(order.deployment_id)
        if server.ended:
            await self._orders.note_ended(order, server.reason)
        if server.failed:
            self._stops.stop_soon(order.request_id, f"it has failed: {server.reason}")
        game = self._games.get(order.game, order.version)
        return self._status.hear(
            as_deployment(server, order.deployment_id, (order.game, order.version), game)
        )

    async def deployment_named(self, native_id: str) -> str | None:
        """See `KnowsNativeIds`; a native id is Edgegap's request id. Reads the orders, because another matchmaker may
        have placed the order."""
        if (known := self._status.named(native_id)) is not None:
            return known
        for deployment_id, order in (await self._orders.all()).items():
            if order.request_id == native_id:
                return deployment_id
        return None

    async def list(self) -> list[Deployment]:
        """See `ServerDirectory`. Also adopts outcomes of orders that were never written, and stops what should not
        run."""
        servers = await self._listing.all()
        orders = await self._orders.all()
        now = self._now()
        diff = compare(
            servers,
            orders,
            self._stops.sent,
            namespace=self._namespace,
            games=self._games.all(),
            now=now,
        )
        for deployment in diff.as_ordered:
            self._status.confirm(deployment.deployment_id)
            self._status.hear(deployment)
        for deployment_id, request_id in diff.to_adopt:
            self._tasks.start(self._try_to_adopt(deployment_id, request_id), f"adopt/{deployment_id}")
        for request_id, why in diff.to_stop:
            self._stops.stop_soon(request_id, why)
        for id in suspects(
            orders, diff.ours, self._polled_at, self._status.was_running, now=now, wall=self._clock()
        ):
            self._poll.poll_now(id)
        self._stops.keep({server.request_id for server in servers})
        self._status.keep(orders.keys(), younger_than=STOPPING)
        self._polled_at = {id: at for id, at in self._polled_at.items() if id in orders}
        return [one for one in diff.ours.values() if one.state is not RunState.STOPPED]

    async def _try_to_adopt(self, deployment_id: str, request_id: str) -> None:
        try:
            await self._orders.adopt(deployment_id, request_id)
        except OrchestratorError as exc:
            log.info("%s is %s; the next listing writes it: %s", deployment_id, request_id, exc)

    async def stop(self, deployment_id: str) -> None:
        """See `ServerDirectory`. Returns when Edgegap has accepted the request."""
        order = await self._orders.stop(deployment_id)
        if order.request_id:
            await self._stops.stop(order.request_id)
        if order.tries != 1 or not order.request_id:
            # Ordered more than once, or with unknown outcome, or the order is lost: stop every one with its tag.
            for server in await self._listing.named(deployment_id):
                if server.request_id != order.request_id:
                    await self._stops.stop(server.request_id)
        self._status.hear(as_stopped(order))

    async def events(self) -> AsyncIterator[Deployment]:
        """See `ServerDirectory`. From webhooks where Edgegap can reach httpd, else from polls; ends with `close`."""
        with self._status.listeners.listen() as queue:
            if self._polling is None:
                self._polling = self._tasks.start(self._poll.run(self._poll_due, self._hook_id), "poll")
                self._polling.add_done_callback(self._polling_ended)
            async for event in queue:
                yield event

    def _polling_ended(self, task: asyncio.Task[None]) -> None:
        """By `close`, or by an unexpected exception: listeners then begin again."""
        self._polling = None
        self._status.listeners.close()

    def _hook_id(self, name: str) -> str | None:
        """A webhook has the deployment's id; None for a deployment that we have not heard of."""
        return name if name in self._status else None

    async def _poll_due(self, due: Iterable[str]) -> None:
        orders = {id: entry.value for id in due if (entry := await self._orders.get(id)) is not None}
        if len(orders) > BY_STATUS or not self._client.status_is_free:
            running = {one.deployment_id for one in await self.list() if one.state is RunState.RUNNING}
            # The list does not tell which have failed: read a few statuses, each time of others.
            doubtful = sorted(orders.keys() - running, key=lambda id: self._polled_at.get(id, 0.0))
            orders = {id: orders[id] for id in doubtful[:BY_STATUS]}
        for id, order in orders.items():
            if order.state is OrderState.STOPPED:
                self._poll.remove(id)
        await poll_each(
            [
                id
                for id, order in orders.items()
                if order.state is not OrderState.STOPPED and order.request_id
            ],
            lambda id: self._read_status(orders[id]),
        )

    async def close(self) -> None:
        """See `ServerDirectory`. Ends the tasks first, then the listeners."""
        await self._tasks.close()
        await self._listing.close()
        self._status.listeners.close()
