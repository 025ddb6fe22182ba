"""Carries out the effects of a change of the state: starts and stops servers, sends webhooks, keeps the time."""

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

from tipoff_edgegap_emulator.deployment import (
    AppKey,
    Deployment,
    Effect,
    SendWebhook,
    StartServer,
    StopServer,
)
from tipoff_edgegap_emulator.documents import arbitrium, status_document
from tipoff_edgegap_emulator.fault_plan import (
    Dies,
    Fault,
    FaultPlan,
    GoesWrong,
    Hold,
    NeverReady,
    Repeat,
    Vanishes,
)
from tipoff_edgegap_emulator.fleet import Fleet
from tipoff_edgegap_emulator.options import Options
from tipoff_edgegap_emulator.sessions import Sessions, session_webhook
from tipoff_edgegap_emulator.state import EmulatorState
from tipoff_launcher.backends.interface import Backend
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_shared.games import Game
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

WEBHOOK_TIMEOUT = 10.0
"""Seconds that Edgegap waits for the answer to a webhook."""
_KEPT = 100_000


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that was sent at `at` (Unix time). `outcome`: the status of the answer, or the error."""

    at: float
    url: str = field(repr=False)
    body: Any
    outcome: int | str


class EffectRunner:
    """Made by `Emulator`. `changed` is notified after every change of the state. `url`: where servers reach the API."""

    def __init__(
        self,
        state: EmulatorState,
        sessions: Sessions,
        plan: FaultPlan,
        games: Mapping[AppKey, Game],
        options: Options,
        url: str,
        backend: Backend,
        logs: Path,
        tasks: Tasks,
    ) -> None:
        self.deliveries: deque[Delivery] = deque(maxlen=_KEPT)
        self.changed = asyncio.Condition()
        self._url = url
        self._state = state
        self._sessions = sessions
        self._plan = plan
        self._games = dict(games)
        self._public_ip = options.public_ip
        self._tasks = tasks
        self._life: dict[str, Fault] = {}
        self._held_back: list[tuple[str, Any]] = []
        self._wake = asyncio.Event()
        self._webhook_client: httpx.AsyncClient | None = None
        """Opened by the first webhook: reading the system's authorities takes longer than a test."""
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
        """Apply the fault that is planned for the life of the next deployment, if any."""
        how = self._plan.take("life")
        if isinstance(how, NeverReady):
            made.start_at = float("inf")
        elif how is not None:
            self._life[made.request_id] = how

    def settle(self) -> None:
        """Let the sessions follow a change of the state, and compute anew what is due next."""
        self.apply(self._sessions.due(time.time()))
        self._wake.set()

    def tell(self) -> None:
        """Notify `changed` soon."""
        self._tasks.start(self._announce(), "change")

    async def _announce(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def keep_time(self) -> None:
        """Do what is due when it is due, until cancelled."""
        while True:
            self._wake.clear()
            now = time.time()
            self.apply(self._state.due(now))
            self.apply(self._sessions.due(now))
            await self._announce()
            times = [at for at in (self._state.next_due(), self._sessions.next_due()) if at is not None]
            wait = max(0.0, min(times) - time.time()) if times else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wait == float("inf") else wait):
                    await self._wake.wait()

    def apply(self, effects: list[Effect]) -> None:
        """Begin to carry out `effects`."""
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
        if (one := self._state.find(request_id)) is None:
            return
        how = self._life.pop(request_id, None)
        if isinstance(how, GoesWrong):
            self.apply(self._state.fail(one, how.detail, time.time()))
        else:
            await self._start_server(one)
        if isinstance(how, Dies) and one.runs:
            self._tasks.start(self._die(how.after, request_id), "death")
        if isinstance(how, Vanishes) and one.runs:
            self._tasks.start(self._vanish(how, request_id), "vanishing")
        self.settle()
        await self._announce()

    async def _start_server(self, one: Deployment) -> None:
        game, version = self._games.get(one.key), self._state.catalogue.versions.get(one.key)
        try:
            if game is None or version is None:
                raise OrchestratorError(
                    f"games.toml has no game with application {one.key[0]} version {one.key[1]} in [game.edgegap]"
                )
            one.ports = self.fleet.pick_ports(one, version["ports"], game)
            one.public_ip = self._public_ip
            environment = {env["key"]: env["value"] for env in version["envs"]}
            environment |= one.environment | arbitrium(one, self._url)
            await self.fleet.start(one, game, environment, version.get("arguments"))
        except (OrchestratorError, OSError) as exc:
            log.warning("deployment %s: %s", one.request_id, exc)
            self.apply(self._state.fail(one, f"The server cannot be started: {exc}", time.time()))
        else:
            self.apply(self._state.started(one, one.ports, one.public_ip, time.time()))

    def _server_ended(self, request_id: str, code: int | None) -> None:
        if (one := self._state.find(request_id)) is not None:
            self.apply(self._state.server_ended(one, code, time.time()))
        self.settle()
        self.tell()

    async def _die(self, seconds: float, request_id: str) -> None:
        await asyncio.sleep(seconds)  # the fault itself
        await self.fleet.kill(request_id)

    async def _vanish(self, how: Vanishes, request_id: str) -> None:
        await asyncio.sleep(how.after)  # the fault itself
        if not how.hidden:
            self.vanish(request_id)
        elif (one := self._state.find(request_id)) is not None:
            one.listed = False
            self.tell()

    def vanish(self, request_id: str) -> None:
        """Make a deployment unknown, and stop its server."""
        if self._state.deployments.pop(request_id, None) is not None:
            self.fleet.stop(request_id)
            self.settle()
            self.tell()

    # Webhooks: sent once, with 10 seconds for the answer, never repeated.

    def _webhook(self, effect: SendWebhook) -> None:
        body: Any
        if effect.event == "session":
            if (session := self._sessions.all.get(effect.about)) is None:
                return
            body = session_webhook(session)
        else:
            if (one := self._state.find(effect.about)) is None:
                return
            body = status_document(one, self._state.max_duration(one), time.time())
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
        """Post one webhook, and record what came of it."""
        outcome: int | str
        if self._webhook_client is None:
            self._webhook_client = httpx.AsyncClient(timeout=WEBHOOK_TIMEOUT, trust_env=False)
        try:
            async with asyncio.timeout(WEBHOOK_TIMEOUT):
                outcome = (await self._webhook_client.post(url, json=body)).status_code
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as exc:
            outcome = f"{type(exc).__name__}: {exc}"
            log.info("a webhook was not delivered and is not repeated: %s", type(exc).__name__)
        delivery = Delivery(time.time(), url, body, outcome)
        self.deliveries.append(delivery)
        await self._announce()
        return delivery

    async def close_webhook_connections(self) -> None:
        """Close the connections to the receivers of webhooks; the next webhook opens new ones."""
        client, self._webhook_client = self._webhook_client, None
        if client is not None:
            await client.aclose()

    async def close(self) -> None:
        """Stop all servers, then close the connections."""
        await self.fleet.stop_all()
        await self.close_webhook_connections()
