"""The orchestrator `edgegap`: one v2 deployment for each of ours, told apart by tags, ordered once.

What is ordered is written down first (book.py). A create whose outcome is not known is looked for in the list before it
is repeated; should it come to be later all the same, `list` finds two of one name, or one that was stopped, and stops
what nobody has asked for.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeAlias

import msgspec
import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_orchestrator_client.edgegap.answers import Server
from tipoff_orchestrator_client.edgegap.book import Book, Known
from tipoff_orchestrator_client.edgegap.client import MAX_USERS, EdgegapClient
from tipoff_orchestrator_client.edgegap.environment import Environment
from tipoff_orchestrator_client.edgegap.errors import NoRoom
from tipoff_orchestrator_client.edgegap.listing import Shared
from tipoff_orchestrator_client.edgegap.looks import BY_STATUS, Looks
from tipoff_orchestrator_client.edgegap.names import ORCHESTRATOR
from tipoff_orchestrator_client.edgegap.naming import (
    as_deployment,
    deployment_id_in,
    game_in,
    tags_of,
)
from tipoff_orchestrator_client.edgegap.settings import Settings
from tipoff_orchestrator_client.edgegap.users import addresses
from tipoff_orchestrator_client.event_queue import EventQueue
from tipoff_shared.errors import ConfigError
from tipoff_shared.games import Game, Games
from tipoff_shared.nats_connection import Bus
from tipoff_shared.records import EdgegapOrder, OrderState
from tipoff_shared.supervise import Tasks

log = logging.getLogger(__name__)

Deployments: TypeAlias = list[Deployment]  # within the class, `list` is a method

_TRIES = 8
_FRESH = 0.5
"""Seconds for which what was just read from Edgegap answers a `get`, too: a look that finds news is followed by one."""
_COMING = 60.0
"""Seconds after a create of unknown outcome in which the deployment may still appear."""
_STOPPING = 60.0
"""Seconds that a deployment may go on being listed after it was told to stop."""
_REPEAT_STOP = 15.0
_LATE = 10.0
"""Seconds after an order in which Edgegap may not know it by its id yet (the create is v2, the status v1: assumed)."""
_AGAIN = 1.0
"""Seconds between two looks at one that is missing from the list."""
_HOOK_PAUSE = 0.005


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
        self._bus = bus
        self._games = games
        self._settings = settings
        self._clock = clock
        self._namespace = bus.settings.namespace
        self._environment = Environment(settings, bus.settings, games)
        self._hooks = settings.hooks(self._namespace)
        self._book = Book(bus)
        self._listing: Shared[list[Server]] = Shared(client.deployments)
        first = settings.poll_slowest if self._hooks is not None else settings.poll_first
        self._looks = Looks(min(first, settings.poll_slowest), settings.poll_slowest)
        self._look_now = asyncio.Event()
        self._seen: dict[str, tuple[Deployment, float]] = {}
        """What was last heard of each, and when (monotonic): what is news is judged by it."""
        self._told: dict[str, float] = {}
        """request id -> when (monotonic) it was told to stop."""
        self._status_at: dict[str, float] = {}
        """When (monotonic) the status of each was last asked for."""
        self._met: set[str] = set()
        """Those that Edgegap has told of: should it not know one any more, it is gone."""
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._listeners: set[EventQueue] = set()
        self._tasks = Tasks(ORCHESTRATOR)
        self._watching: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return ORCHESTRATOR

    # Starting.

    async def deploy(self, spec: DeploySpec) -> Deployment:
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
                if (claim := await self._claim(spec, entry)) is None:
                    continue  # somebody else is at it, too
                webhook_url = ""
                if self._hooks is not None:
                    name = self._hooks.path_name(spec.deployment_id)
                    webhook_url = f"{self._settings.hook_url}/hook/{name}"
                near = addresses(spec.near, self._settings.default_near)[:MAX_USERS]
                try:
                    request_id = await self._client.create(
                        game.edgegap.application,
                        game.edgegap.version,
                        near=near,
                        environment=environment,
                        tags=tags_of(self._namespace, spec.deployment_id, game.key),
                        webhook_url=webhook_url,
                    )
                except NoRoom as exc:
                    if exc.request_id:
                        self._stop_later(exc.request_id, "it could not be placed")
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

    async def _ordered(self, entry: Known, game: Game) -> Deployment | None:
        """What was ordered before under this name; None when nothing has come of it."""
        assert entry is not None
        order = entry.value
        if order.state is OrderState.STOPPED:
            return _stopped(order)
        if not order.request_id:
            server = await self._find(order.deployment_id)
            if server is None:
                return None
            return await self._note(entry, server.request_id)
        seen = self._fresh(order.deployment_id)
        if seen is not None:
            return seen
        server = await self._client.status(order.request_id)
        if server is None:
            if self._may_be_late(order):
                return self._follow(_deployment(order))
            return self._heard(
                replace(_deployment(order), state=RunState.STOPPED, reason="Edgegap has ended it")
            )
        self._met.add(order.deployment_id)
        return self._follow(self._heard(as_deployment(server, order.deployment_id, game.key, game)))

    async def _claim(self, spec: DeploySpec, entry: Known) -> Known:
        """Write down that it is ordered now; None when somebody else has written meanwhile."""
        order = EdgegapOrder(
            spec.deployment_id,
            OrderState.ORDERING,
            spec.game,
            spec.version,
            tried_at=self._clock(),
            tries=1 if entry is None else entry.value.tries + 1,
        )
        return await self._book.write(order, entry)

    async def _note(self, claim: Known, request_id: str) -> Deployment:
        """What the order has led to; where it was stopped meanwhile, or led to something else, that is stopped."""
        entry = claim
        for _ in range(_TRIES):
            if entry is None:
                break
            order = entry.value
            if order.state is OrderState.STOPPED:
                await self._stop(request_id)
                return _stopped(order)
            noted = msgspec.structs.replace(order, state=OrderState.ORDERED, request_id=request_id)
            if order.request_id and order.request_id != request_id:
                self._stop_later(request_id, f"{order.deployment_id} runs as {order.request_id}")
                noted = order
            if order.request_id or await self._book.write(noted, entry) is not None:
                return self._follow(self._heard(_deployment(noted)))
            entry = await self._book.read(order.deployment_id)
        raise OrchestratorUnavailable(
            "an order was changed by others again and again", retryable=True, may_have_started=True
        )

    def _follow(self, deployment: Deployment) -> Deployment:
        """Look at it until it is more than on its way."""
        if deployment.state is RunState.STARTING:
            self._looks.wait_for(deployment.deployment_id, _now())
            self._look_now.set()
        return deployment

    def _may_be_late(self, order: EdgegapOrder) -> bool:
        """Whether Edgegap may only not know it yet."""
        return order.deployment_id not in self._met and 0 <= self._clock() - order.tried_at < _LATE

    async def _look_for(self, deployment_id: str) -> Server | None:
        """After a create of unknown outcome; None also when the list cannot be read."""
        try:
            return await self._find(deployment_id)
        except OrchestratorError as exc:
            log.info("whether %s was created is not known: %s", deployment_id, exc)
            return None

    # Looking.

    async def get(self, deployment_id: str) -> Deployment | None:
        seen = self._fresh(deployment_id)
        if seen is not None and seen.state is RunState.RUNNING:
            return seen
        entry = await self._book.read(deployment_id)
        if entry is None or not entry.value.request_id:
            if entry is not None and entry.value.state is OrderState.STOPPED:
                return _stopped(entry.value)
            server = await self._find(deployment_id)
            if server is not None:
                if entry is not None:
                    await self._adopt(deployment_id, server.request_id)
                game = game_in(server.tags, self._games.all())
                key = game.key if game is not None else ("", "")
                return as_deployment(server, deployment_id, key, game)
            if entry is not None and self._clock() - entry.value.tried_at < _COMING:
                return _deployment(entry.value)
            return None
        order = entry.value
        if order.state is OrderState.STOPPED:
            return _stopped(order)
        return await self._look_at(order)

    async def _look_at(self, order: EdgegapOrder) -> Deployment | None:
        """By its status; tells those who listen when it has changed."""
        self._status_at[order.deployment_id] = _now()
        server = await self._client.status(order.request_id)
        if server is None:
            if self._may_be_late(order):
                return _deployment(order)
            await self._note_ended(order, "Edgegap has it no more")
            gone = replace(_deployment(order), state=RunState.STOPPED, reason="Edgegap has it no more")
            self._heard(gone)
            return None
        self._met.add(order.deployment_id)
        if server.ended:
            await self._note_ended(order, server.reason)
        if server.failed:
            self._stop_later(order.request_id, f"it has failed: {server.reason}")
        game = self._games.get(order.game, order.version)
        return self._heard(as_deployment(server, order.deployment_id, (order.game, order.version), game))

    async def _adopt(self, deployment_id: str, request_id: str) -> None:
        """Somebody ordered it and did not live to write down what came of it: from now on it is known by its id."""
        entry = await self._book.read(deployment_id)
        if entry is not None and entry.value.state is OrderState.ORDERING and not entry.value.request_id:
            order = msgspec.structs.replace(entry.value, state=OrderState.ORDERED, request_id=request_id)
            await self._book.write(order, entry)

    async def _try_to_adopt(self, deployment_id: str, request_id: str) -> None:
        try:
            await self._adopt(deployment_id, request_id)
        except OrchestratorError as exc:
            log.info("that %s is %s is written down later: %s", deployment_id, request_id, exc)

    async def _note_ended(self, order: EdgegapOrder, reason: str) -> None:
        """Nobody need stop it any more, and what is written of it may be forgotten some day. A hint that may fail: the
        next look says it again."""
        ended = msgspec.structs.replace(order, state=OrderState.STOPPED, reason=reason)
        entry = await self._book.read(order.deployment_id)
        if entry is not None and entry.value == order:
            await self._book.write(ended, entry)

    async def deployment_named(self, native_id: str) -> str | None:
        """By Edgegap's request id: a server that knows no more of itself says so. From the book, because another
        matchmaker may have ordered it."""
        for deployment_id, (seen, _) in self._seen.items():
            if seen.native_id == native_id:
                return deployment_id
        for deployment_id, order in (await self._book.all()).items():
            if order.request_id == native_id:
                return deployment_id
        return None

    async def list(self) -> list[Deployment]:
        servers = await self._listing.get()
        orders = await self._book.all()
        return self._judge(servers, orders)

    def _judge(self, servers: Iterable[Server], orders: dict[str, EdgegapOrder]) -> Deployments:
        """Ours and only ours; what of ours should not be is told to stop."""
        found: dict[str, Deployment] = {}
        now = _now()
        for server in servers:
            deployment_id = deployment_id_in(server.tags, self._namespace)
            if deployment_id is None:
                continue
            order = orders.get(deployment_id)
            game = game_in(server.tags, self._games.all())
            key = game.key if game is not None else (order.game, order.version) if order else ("", "")
            deployment = as_deployment(server, deployment_id, key, game)
            if order is None or order.state is OrderState.ORDERING:
                if order is not None and deployment_id not in found and not server.ended:
                    adopting = self._try_to_adopt(deployment_id, server.request_id)
                    self._tasks.start(adopting, f"adopt/{deployment_id}")
                found.setdefault(deployment_id, deployment)
            elif order.state is OrderState.STOPPED:
                told = self._told.get(server.request_id)
                if told is None or now - told > _REPEAT_STOP:
                    self._stop_later(server.request_id, f"{deployment_id} was stopped")
                if told is not None and now - told > _STOPPING:
                    found.setdefault(deployment_id, deployment)
            elif order.request_id == server.request_id:
                self._met.add(deployment_id)
                found[deployment_id] = self._heard(deployment)
            else:
                self._stop_later(server.request_id, f"{deployment_id} runs as {order.request_id}")
        self._suspect(orders, found, now)
        listed = {server.request_id for server in servers}
        self._told = {id: at for id, at in self._told.items() if id in listed or now - at < _STOPPING}
        self._seen = {
            id: seen for id, seen in self._seen.items() if id in orders or now - seen[1] < _STOPPING
        }
        self._status_at = {id: at for id, at in self._status_at.items() if id in orders}
        self._met &= orders.keys()
        return [one for one in found.values() if one.state is not RunState.STOPPED]

    def _suspect(
        self, orders: Mapping[str, EdgegapOrder], listed: Mapping[str, Deployment], now: float
    ) -> None:
        """Ordered, and not in the list: it may have ended. A few statuses say so; the list alone proves nothing."""
        missing = [
            id
            for id, order in orders.items()
            if order.state is OrderState.ORDERED
            and id not in listed
            and now - self._status_at.get(id, -_AGAIN) >= _AGAIN
            and (self._clock() - order.tried_at > _COMING or self._was_running(id, now))
        ]
        for id in sorted(missing, key=lambda id: self._status_at.get(id, 0.0))[:BY_STATUS]:
            self._looks.call(id)
            self._look_now.set()

    def _was_running(self, deployment_id: str, now: float) -> bool:
        seen = self._seen.get(deployment_id)
        return seen is not None and seen[0].state is RunState.RUNNING and now - seen[1] > _FRESH

    async def _find(self, deployment_id: str) -> Server | None:
        """By its tags, in the list; the oldest known of several."""
        for server in await self._listing.get():
            if deployment_id_in(server.tags, self._namespace) == deployment_id and not server.ended:
                return server
        return None

    # Stopping.

    async def stop(self, deployment_id: str) -> None:
        order = await self._write_stopped(deployment_id)
        if order.request_id:
            await self._stop(order.request_id)
        if order.tries != 1 or not order.request_id:
            # Ordered more than once, or with unknown outcome, or by somebody whose book is lost: whatever has its name.
            for server in await self._listing.get():
                if (
                    deployment_id_in(server.tags, self._namespace) == deployment_id
                    and server.request_id != order.request_id
                ):
                    await self._stop(server.request_id)
        self._heard(_stopped(order))

    async def _write_stopped(self, deployment_id: str) -> EdgegapOrder:
        for _ in range(_TRIES):
            entry = await self._book.read(deployment_id)
            order = EdgegapOrder(deployment_id, OrderState.STOPPED) if entry is None else entry.value
            if entry is not None and order.state is OrderState.STOPPED:
                return order
            order = msgspec.structs.replace(order, state=OrderState.STOPPED, reason="stopped")
            if await self._book.write(order, entry) is not None:
                return order
        raise OrchestratorUnavailable(f"the order of {deployment_id} changes too quickly", retryable=True)

    async def _stop(self, request_id: str) -> None:
        await self._client.stop(request_id)
        self._told[request_id] = _now()

    def _stop_later(self, request_id: str, why: str) -> None:
        """In the background, once; should it fail, the next `list` begins again."""
        now = _now()
        if now - self._told.get(request_id, -_REPEAT_STOP) < _REPEAT_STOP:
            return
        self._told[request_id] = now
        log.warning("stopping Edgegap's deployment %s: %s", request_id, why)
        self._tasks.start(self._try_to_stop(request_id), f"stop/{request_id}")

    async def _try_to_stop(self, request_id: str) -> None:
        try:
            await self._client.stop(request_id)
        except OrchestratorError as exc:
            self._told.pop(request_id, None)
            log.warning("stopping %s: %s; again with the next listing", request_id, exc)

    # Telling.

    async def events(self) -> AsyncIterator[Deployment]:
        """From webhooks where Edgegap can reach us, from looking again and again otherwise; ends with `close`."""
        queue = EventQueue()
        self._listeners.add(queue)
        try:
            if self._watching is None:
                self._watching = self._tasks.start(self._watch(), "watch")
                self._watching.add_done_callback(self._watched)
            async for event in queue:
                yield event
        finally:
            self._listeners.discard(queue)

    def _watched(self, task: asyncio.Task[None]) -> None:
        """It ends by `close`, or by a mistake: then whoever listens begins again."""
        self._watching = None
        for queue in self._listeners:
            queue.close()

    def _heard(self, deployment: Deployment) -> Deployment:
        """Just read from Edgegap (or just done): remembered, and told to those who listen if it is news."""
        id = deployment.deployment_id
        before = self._seen.get(id)
        self._seen[id] = (deployment, _now())
        if deployment.state is not RunState.STARTING:
            self._looks.done(id)
            if before is None or before[0].state is not deployment.state:
                for queue in self._listeners:
                    queue.tell(deployment)
        return deployment

    def _fresh(self, deployment_id: str) -> Deployment | None:
        seen = self._seen.get(deployment_id)
        if seen is None or _now() - seen[1] > _FRESH or seen[0].state is RunState.STOPPED:
            return None
        return seen[0]

    async def _watch(self) -> None:
        """Looks at those that are waited for, when they are due or a webhook calls, until `close`."""
        subscription = await self._listen_to_hooks() if self._hooks is not None else None
        try:
            while True:
                self._look_now.clear()
                await self._until(self._looks.next_at())
                due = self._looks.due(_now())
                if not due:
                    continue
                try:
                    await self._look(due)
                except OrchestratorError as exc:
                    log.info("looking at %d deployment(s): %s", len(due), exc)
                    await asyncio.sleep(min(exc.retry_after or 0.0, 10.0))
                if self._hooks is not None:
                    await asyncio.sleep(_HOOK_PAUSE)  # what is called meanwhile is looked at together
        finally:
            if subscription is not None and not self._bus.nc.is_closed:
                await subscription.unsubscribe()

    async def _until(self, when: float | None) -> None:
        """Until then, or something new is to be looked at."""
        if when is not None and when <= _now():
            return
        try:
            async with asyncio.timeout(None if when is None else when - _now()):
                await self._look_now.wait()
        except TimeoutError:
            return

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
                self._looks.done(id)
            elif order.request_id:
                try:
                    await self._look_at(order)
                except OrchestratorError as exc:  # of one of them: the others are looked at all the same
                    error = exc
        if error is not None:
            raise error

    async def _listen_to_hooks(self) -> Subscription | None:
        async def called(msg: Msg) -> None:
            id = msg.subject.rpartition(".")[2]
            if (
                id in self._seen
            ):  # of another matchmaker's, or nobody's: its own looks, or the sweep, see to it
                self._looks.call(id)
                self._look_now.set()

        try:
            return await self._bus.nc.subscribe(self._bus.subjects.all_webhooks, cb=called)
        except nats.errors.Error as exc:
            log.warning("webhooks cannot be heard, looking from time to time instead: %s", exc)
            return None

    async def close(self) -> None:
        """The tasks first, then those who listen."""
        await self._tasks.close()
        await self._listing.close()
        for queue in self._listeners:
            queue.close()

    def _lock(self, deployment_id: str) -> asyncio.Lock:
        lock = self._locks.get(deployment_id)
        if lock is None:
            lock = self._locks[deployment_id] = asyncio.Lock()
        return lock


def _deployment(order: EdgegapOrder) -> Deployment:
    return Deployment(
        order.deployment_id, order.game, order.version, RunState.STARTING, native_id=order.request_id
    )


def _stopped(order: EdgegapOrder) -> Deployment:
    return replace(_deployment(order), state=RunState.STOPPED, reason=order.reason or "stopped")


def _now() -> float:
    return asyncio.get_running_loop().time()
