"""The orchestrator `edgegap`: one v2 deployment for each of ours, told apart by tags, ordered once.

An order is written down first, and one of unknown outcome is looked for before it is repeated (ordering.py); should
it come to be later all the same, `list` finds two of one name, or one that was stopped, and stops what nobody asked for
(judge.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from tipoff_orchestrator_client.base import Deployment, DeploySpec, OrchestratorError, RunState
from tipoff_orchestrator_client.edgegap import ORCHESTRATOR
from tipoff_orchestrator_client.edgegap.api.answers import Server
from tipoff_orchestrator_client.edgegap.api.client import EdgegapClient
from tipoff_orchestrator_client.edgegap.naming import as_deployment, as_started, as_stopped, game_in
from tipoff_orchestrator_client.edgegap.orders.order_diff import COMING, judge, suspects
from tipoff_orchestrator_client.edgegap.orders.ordering import Ordering
from tipoff_orchestrator_client.edgegap.orders.stops import STOPPING, Stops
from tipoff_orchestrator_client.edgegap.orders.store import Book
from tipoff_orchestrator_client.edgegap.poller.deployment_list import Listing
from tipoff_orchestrator_client.edgegap.poller.poll_schedule import BY_STATUS
from tipoff_orchestrator_client.edgegap.poller.status_cache import News
from tipoff_orchestrator_client.edgegap.poller.watch import Watch
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_shared.games import Games
from tipoff_shared.nats.connection import Bus
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.records import EdgegapOrder, OrderState

log = logging.getLogger(__name__)


class EdgegapOrchestrator:
    """Made by `open_edgegap`. `client`, `bus` are the caller's; `close` ends the tasks of this object alone."""

    def __init__(
        self,
        client: EdgegapClient,
        bus: Bus,
        games: Games,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._games = games
        self._clock = clock
        self._namespace = bus.settings.namespace
        self._book = Book(bus)
        self._listing = Listing(client, self._namespace)
        self._tasks = Tasks(ORCHESTRATOR)
        self._news = News()
        self._stops = Stops(client, self._tasks)
        self._watch = Watch(
            bus, settings, self._look, self._news, hooked=settings.hooks(self._namespace) is not None
        )
        self._ordering = Ordering(
            client,
            bus,
            games,
            settings,
            book=self._book,
            listing=self._listing,
            watch=self._watch,
            stops=self._stops,
            clock=clock,
        )
        self._watching: asyncio.Task[None] | None = None
        self._status_at: dict[str, float] = {}
        """When (monotonic) the status of each was last asked for."""

    @property
    def name(self) -> str:
        return ORCHESTRATOR

    # Starting.

    async def deploy(self, spec: DeploySpec) -> Deployment:
        return await self._ordering.deploy(spec)

    # Looking.

    async def get(self, deployment_id: str) -> Deployment | None:
        seen = self._news.fresh(deployment_id, _now())
        if seen is not None and seen.state is RunState.RUNNING:
            return seen
        entry = await self._book.read(deployment_id)
        if entry is None or not entry.value.request_id:
            if entry is not None and entry.value.state is OrderState.STOPPED:
                return as_stopped(entry.value)
            server = await self._listing.find(deployment_id)
            if server is not None:
                if entry is not None:
                    await self._book.adopt(deployment_id, server.request_id)
                game = game_in(server.tags, self._games.all())
                key = game.key if game is not None else ("", "")
                return as_deployment(server, deployment_id, key, game)
            if entry is not None and self._clock() - entry.value.tried_at < COMING:
                return as_started(entry.value)
            return None
        order = entry.value
        if order.state is OrderState.STOPPED:
            return as_stopped(order)
        return await self._look_at(order)

    async def _look_at(self, order: EdgegapOrder) -> Deployment | None:
        """By its status; tells those who listen when it has changed."""
        self._status_at[order.deployment_id] = _now()
        server = await self._client.status(order.request_id)
        if server is None:
            if self._ordering.may_be_late(order):
                return as_started(order)
            await self._book.note_ended(order, "Edgegap has it no more")
            gone = replace(as_started(order), state=RunState.STOPPED, reason="Edgegap has it no more")
            self._watch.heard(gone)
            return None
        self._news.meet(order.deployment_id)
        if server.ended:
            await self._book.note_ended(order, server.reason)
        if server.failed:
            self._stops.later(order.request_id, f"it has failed: {server.reason}")
        game = self._games.get(order.game, order.version)
        return self._watch.heard(
            as_deployment(server, order.deployment_id, (order.game, order.version), game)
        )

    async def _try_to_adopt(self, deployment_id: str, request_id: str) -> None:
        try:
            await self._book.adopt(deployment_id, request_id)
        except OrchestratorError as exc:
            log.info("that %s is %s is written down later: %s", deployment_id, request_id, exc)

    async def deployment_named(self, native_id: str) -> str | None:
        """By Edgegap's request id: a server that knows no more of itself says so. From the book, because another
        matchmaker may have ordered it."""
        if (known := self._news.named(native_id)) is not None:
            return known
        for deployment_id, order in (await self._book.all()).items():
            if order.request_id == native_id:
                return deployment_id
        return None

    async def list(self) -> list[Deployment]:
        servers = await self._listing.all()
        orders = await self._book.all()
        now = _now()
        judged = judge(
            servers,
            orders,
            self._stops.told,
            namespace=self._namespace,
            games=self._games.all(),
            now=now,
        )
        for deployment in judged.as_ordered:
            self._news.meet(deployment.deployment_id)
            self._watch.heard(deployment)
        for deployment_id, request_id in judged.to_adopt:
            self._tasks.start(self._try_to_adopt(deployment_id, request_id), f"adopt/{deployment_id}")
        for request_id, why in judged.to_stop:
            self._stops.later(request_id, why)
        was_running = partial(self._news.was_running, now=now)
        wall = self._clock()
        for id in suspects(orders, judged.ours, self._status_at, was_running, now=now, wall=wall):
            self._watch.call(id)
        self._forget_all_but(orders, servers)
        return [one for one in judged.ours.values() if one.state is not RunState.STOPPED]

    def _forget_all_but(self, orders: Mapping[str, EdgegapOrder], servers: Iterable[Server]) -> None:
        self._stops.forget_all_but({server.request_id for server in servers})
        self._news.forget_all_but(orders.keys(), before=_now() - STOPPING)
        self._status_at = {id: at for id, at in self._status_at.items() if id in orders}

    # Stopping.

    async def stop(self, deployment_id: str) -> None:
        order = await self._book.stop(deployment_id)
        if order.request_id:
            await self._stops.now(order.request_id)
        if order.tries != 1 or not order.request_id:
            # Ordered more than once, or with unknown outcome, or by somebody whose book is lost: whatever has its name.
            for server in await self._listing.named(deployment_id):
                if server.request_id != order.request_id:
                    await self._stops.now(server.request_id)
        self._watch.heard(as_stopped(order))

    # Telling.

    async def events(self) -> AsyncIterator[Deployment]:
        """From webhooks where Edgegap can reach us, from looking again and again otherwise; ends with `close`."""
        with self._news.listener() as queue:
            if self._watching is None:
                self._watching = self._tasks.start(self._watch.run(), "watch")
                self._watching.add_done_callback(self._watched)
            async for event in queue:
                yield event

    def _watched(self, task: asyncio.Task[None]) -> None:
        """It ends by `close`, or by a mistake: then whoever listens begins again."""
        self._watching = None
        self._news.end_all()

    async def _look(self, due: Iterable[str]) -> None:
        orders = {id: entry.value for id in due if (entry := await self._book.read(id)) is not None}
        if len(orders) > BY_STATUS or not self._client.status_is_free:
            ready = {one.deployment_id for one in await self.list() if one.state is RunState.RUNNING}
            # The list does not say what has failed: a few statuses do, of others each time.
            doubtful = sorted(orders.keys() - ready, key=lambda id: self._status_at.get(id, 0.0))
            orders = {id: orders[id] for id in doubtful[:BY_STATUS]}
        error: OrchestratorError | None = None
        for id, order in orders.items():
            if order.state is OrderState.STOPPED:
                self._watch.done(id)
            elif order.request_id:
                try:
                    await self._look_at(order)
                except OrchestratorError as exc:  # of one of them: the others are looked at all the same
                    error = exc
        if error is not None:
            raise error

    async def close(self) -> None:
        """The tasks first, then those who listen."""
        await self._tasks.close()
        await self._listing.close()
        self._news.end_all()


def _now() -> float:
    return asyncio.get_running_loop().time()
