"""What follows from a change of the world: servers start and stop, sessions follow their deployments, webhooks are
sent, time passes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tipoff_edgegap_emulator.deployment import AppKey, Deployment, Phase
from tipoff_edgegap_emulator.documents import arbitrium, status_document
from tipoff_edgegap_emulator.effects import Effect, SendWebhook, StartServer, StopServer
from tipoff_edgegap_emulator.fleet import Fleet
from tipoff_edgegap_emulator.misbehaviour import (
    Dies,
    GoesWrong,
    Hold,
    Misbehaviour,
    NeverReady,
    Plan,
    Repeat,
    Vanishes,
)
from tipoff_edgegap_emulator.options import Options
from tipoff_edgegap_emulator.sessions import Sessions, session_webhook
from tipoff_edgegap_emulator.state import World
from tipoff_launcher.backends.interface import Backend
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_shared.games import Game
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

WEBHOOK_TIMEOUT = 10.0
_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook that was sent, and what became of it: a status, or what went wrong."""

    at: float
    url: str = field(repr=False)
    body: Any
    outcome: int | str


class Consequences:
    """`changed` is notified after every change that somebody may wait for."""

    def __init__(
        self,
        world: World,
        sessions: Sessions,
        plan: Plan,
        games: Mapping[AppKey, Game],
        options: Options,
        backend: Backend,
        logs: Path,
        tasks: Tasks,
    ) -> None:
        self.deliveries: deque[Delivery] = deque(maxlen=_KEPT)
        self.changed = asyncio.Condition()
        self.url = options.url
        self._world = world
        self._sessions = sessions
        self._plan = plan
        self._games = dict(games)
        self._public_ip = options.public_ip
        self._tasks = tasks
        self._life: dict[str, Misbehaviour] = {}
        self._held_back: list[tuple[str, Any]] = []
        self._wake = asyncio.Event()
        self._client: httpx.AsyncClient | None = None
        self.fleet = Fleet(
            backend,
            logs,
            tasks,
            ports=options.ports,
            host=options.host,
            namespace=options.namespace,
            on_end=self._server_ended,
        )

    def begin_life(self, made: Deployment) -> None:
        """What has been ordered for the next deployment becomes its fate."""
        how = self._plan.take("life")
        if isinstance(how, NeverReady):
            made.start_at = float("inf")
        elif how is not None:
            self._life[made.request_id] = how

    def settle(self) -> None:
        """Carry the world's changes to the sessions, and let the clock look again."""
        self.apply(self._sessions.due(time.time()))
        self._wake.set()

    def tell(self) -> None:
        self._tasks.start(self._announce(), "change")

    async def _announce(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def keep_time(self) -> None:
        """For ever: do what is due when it is due."""
        while True:
            self._wake.clear()
            now = time.time()
            self.apply(self._world.due(now))
            self.apply(self._sessions.due(now))
            await self._announce()
            times = [at for at in (self._world.next_due(), self._sessions.next_due()) if at is not None]
            wait = max(0.0, min(times) - time.time()) if times else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wait == float("inf") else wait):
                    await self._wake.wait()

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StartServer(request_id):
                    self._tasks.start(self._start(request_id), request_id)
                case StopServer(request_id):
                    self.fleet.stop(request_id)
                case SendWebhook():
                    self._webhook(effect)

    # Servers.

    async def _start(self, request_id: str) -> None:
        if (one := self._world.find(request_id)) is None:
            return
        how = self._life.pop(request_id, None)
        if isinstance(how, GoesWrong):
            self.apply(self._world.fail(one, how.detail, time.time()))
        else:
            await self._start_server(one)
        if isinstance(how, Dies) and one.phase is Phase.READY:
            self._tasks.start(self._die(how.after, request_id), "death")
        if isinstance(how, Vanishes) and one.phase is Phase.READY:
            self._tasks.start(self._vanish(how, request_id), "vanishing")
        self.settle()
        await self._announce()

    async def _start_server(self, one: Deployment) -> None:
        game, version = self._games.get(one.key), self._world.catalogue.versions.get(one.key)
        try:
            if game is None or version is None:
                raise OrchestratorError(
                    f"{one.key[0]} {one.key[1]} is no game of games.toml ([game.edgegap])"
                )
            one.ports = self.fleet.pick_ports(one, version["ports"], game)
            one.public_ip = self._public_ip
            environment = {env["key"]: env["value"] for env in version["envs"]}
            environment |= one.environment | arbitrium(one, self.url)
            await self.fleet.start(one, game, environment, version.get("arguments"))
        except (OrchestratorError, OSError) as exc:
            log.warning("deployment %s: %s", one.request_id, exc)
            self.apply(self._world.fail(one, f"The server cannot be started: {exc}", time.time()))
        else:
            self.apply(self._world.started(one, one.ports, one.public_ip, time.time()))

    def _server_ended(self, request_id: str, code: int | None) -> None:
        if (one := self._world.find(request_id)) is not None:
            self.apply(self._world.server_ended(one, code, time.time()))
        self.settle()
        self.tell()

    async def _die(self, seconds: float, request_id: str) -> None:
        await asyncio.sleep(seconds)  # the order itself
        await self.fleet.kill(request_id)

    async def _vanish(self, how: Vanishes, request_id: str) -> None:
        await asyncio.sleep(how.after)  # the order itself
        if not how.hidden:
            self.vanish(request_id)
        elif (one := self._world.find(request_id)) is not None:
            one.listed = False
            self.tell()

    def vanish(self, request_id: str) -> None:
        """A deployment is no more, and nobody has ever heard of it."""
        if self._world.deployments.pop(request_id, None) is not None:
            self.fleet.stop(request_id)
            self.settle()
            self.tell()

    # Webhooks: once, with 10 seconds, never again.

    def _webhook(self, effect: SendWebhook) -> None:
        body: Any
        if effect.event == "session":
            if (session := self._sessions.all.get(effect.about)) is None:
                return
            body = session_webhook(session)
        else:
            if (one := self._world.find(effect.about)) is None:
                return
            body = status_document(one, self._world.max_duration(one), time.time())
        how = self._plan.take("webhook")
        due = [(effect.url, body)] * (how.times if isinstance(how, Repeat) else 1)
        if isinstance(how, Hold):
            self._held_back += due
            due = []
            if len(self._held_back) >= how.count:
                due, self._held_back = self._held_back[::-1], []
        if due:
            self._tasks.start(self._deliver_all(due), "webhook")

    async def _deliver_all(self, due: list[tuple[str, Any]]) -> None:
        for url, body in due:
            await self.deliver(url, body)

    async def deliver(self, url: str, body: Any) -> Delivery:
        outcome: int | str
        if self._client is None:
            self._client = httpx.AsyncClient(timeout=WEBHOOK_TIMEOUT, trust_env=False)
        try:
            async with asyncio.timeout(WEBHOOK_TIMEOUT):
                outcome = (await self._client.post(url, json=body)).status_code
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as exc:
            outcome = f"{type(exc).__name__}: {exc}"
            log.info("a webhook was not delivered and is not repeated: %s", type(exc).__name__)
        delivery = Delivery(time.time(), url, body, outcome)
        self.deliveries.append(delivery)
        await self._announce()
        return delivery

    async def close(self) -> None:
        await self.fleet.stop_all()
        if self._client is not None:
            await self._client.aclose()
