"""The emulator as a whole: made, listening, told how to misbehave, asked what it has seen."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import socket
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tipoff_edgegap_emulator import control
from tipoff_edgegap_emulator.consequences import Consequences, Delivery
from tipoff_edgegap_emulator.deployment import Deployment
from tipoff_edgegap_emulator.http import Answer, Request, listening
from tipoff_edgegap_emulator.misbehaviour import Misbehaviour, Order, Plan
from tipoff_edgegap_emulator.operations import Operations
from tipoff_edgegap_emulator.options import Options, app_key, first_version
from tipoff_edgegap_emulator.refused import Refused
from tipoff_edgegap_emulator.requests import Recorded, Requests
from tipoff_edgegap_emulator.sessions import Session, Sessions
from tipoff_edgegap_emulator.state import World
from tipoff_launcher.backends.interface import Backend
from tipoff_launcher.backends.process.backend import ProcessBackend
from tipoff_shared.games import Games
from tipoff_shared.primitives.tasks import Tasks


class Emulator:
    """One account at Edgegap. Made by `running_emulator`; all of it belongs to one event loop."""

    def __init__(self, games: Games, options: Options, backend: Backend, logs: Path, tasks: Tasks) -> None:
        self.options = options
        self.token = options.token or str(uuid.uuid4())
        self.world = World(options.rules)
        self.plan = Plan()
        by_key = {app_key(game): game for game in games.all()}
        self._sessions = Sessions(self.world)
        self._consequences = Consequences(
            self.world, self._sessions, self.plan, by_key, options, backend, logs, tasks
        )
        operations = Operations(self.world, self._sessions, self._consequences)
        self._requests = Requests(operations, self.plan, self.token, options.rates, tasks)
        self.fleet = self._consequences.fleet
        if not options.empty:
            now = time.time()
            for (application, _), game in by_key.items():
                if application not in self.world.catalogue.applications:
                    self.world.catalogue.add_application(
                        {"name": application, "is_active": True, "image": ""}, now
                    )
                self.world.catalogue.add_version(application, first_version(game, options), now)

    @property
    def url(self) -> str:
        """Where the API is, for `TIPOFF_EDGEGAP_URL` and for the servers."""
        return self._consequences.url

    def misbehave(self, operation: str, how: Misbehaviour, times: int | None = None) -> Order:
        """See misbehaviour.py. `times` None: until `behave()` or the order's `cancel()`."""
        return self.plan.add(operation, how, times)

    def behave(self) -> None:
        """Forget every order."""
        self.plan.clear()

    @property
    def requests(self) -> deque[Recorded]:
        """Every request, the oldest first."""
        return self._requests.recorded

    @property
    def webhooks(self) -> deque[Delivery]:
        """Every webhook that was sent, the oldest first."""
        return self._consequences.deliveries

    @property
    def deployments(self) -> list[Deployment]:
        """Everything that is not terminated, the newest first."""
        return self.world.active()

    @property
    def sessions(self) -> list[Session]:
        return list(self._sessions.all.values())

    @property
    def problems(self) -> list[str]:
        """Everything that was wrong with any request so far."""
        return [f"{one.method} {one.path}: {problem}" for one in self.requests for problem in one.problems]

    def count(self, operation: str, status: int | None = None) -> int:
        """How many such requests there were, with this status where one is given."""
        return sum(one.operation == operation and status in (None, one.status) for one in self.requests)

    def used_sockets(self, one: Deployment) -> int:
        return self._sessions.used(one)

    def vanish(self, request_id: str) -> None:
        """A deployment is no more, and Edgegap has never heard of it."""
        self._consequences.vanish(request_id)

    async def kill_server(self, request_id: str) -> None:
        """The deployment's server dies, as in a crash."""
        await self.fleet.kill(request_id)

    async def send_webhook(self, url: str, body: Any) -> Delivery:
        """Any body to any URL: forged, out of order, of an unknown id."""
        return await self._consequences.deliver(url, body)

    async def until(self, condition: Callable[[Emulator], bool], timeout: float = 10.0) -> None:
        """Wait until `condition` holds; raises `TimeoutError`."""
        changed = self._consequences.changed
        async with asyncio.timeout(timeout), changed:
            await changed.wait_for(lambda: condition(self))

    async def handle(self, request: Request) -> Answer:
        """One request, as http.py has read it."""
        try:
            if request.path.startswith(control.PREFIX):
                return await self._control(request)
            return await self._requests.handle(request)
        finally:
            self._consequences.tell()

    async def _control(self, request: Request) -> Answer:
        """Orders from another process, see control.py."""
        if not hmac.compare_digest(request.authorization.encode(), f"token {self.token}".encode()):
            return Answer(401, {"message": "Unauthorized"})
        what = (request.method, *request.path.removeprefix(control.PREFIX).strip("/").split("/"))
        try:
            match what:
                case ("GET", ""):
                    operations = [(one.operation, one.status) for one in self.requests]
                    seen = control.summary(operations, self.problems, [one.outcome for one in self.webhooks])
                    counts = {"deployments": len(self.deployments), "sessions": len(self.sessions)}
                    return Answer(200, counts | seen)
                case ("POST", "misbehave"):
                    return Answer(200, control.order(self.plan, request.body))
                case ("POST", "behave"):
                    self.behave()
                    return Answer(200, {})
                case ("POST", "kill", request_id) if request_id in self.fleet.running:
                    await self.kill_server(request_id)
                    return Answer(200, {})
        except Refused as refused:
            return Answer(refused.status, refused.body)
        return Answer(404, {"message": f"no such order: {request.method} {request.path}"})

    async def open(self, url: str, tasks: Tasks) -> None:
        self._consequences.url = url
        tasks.start(self._consequences.keep_time(), "clock")

    async def close(self) -> None:
        await self._consequences.close()


@asynccontextmanager
async def running_emulator(
    games: Games,
    options: Options | None = None,
    *,
    backend: Backend | None = None,
    logs: Path | None = None,
) -> AsyncIterator[Emulator]:
    """An emulator that listens, for the time of the block. `logs`: directory of the servers' output.

    The order of leaving: no more requests; the servers, all at once; then webhooks under way are dropped. Raises
    `OSError` when the port is taken.
    """
    options = options or Options()
    chosen = backend or ProcessBackend(games.base, die_with_parent=options.die_with_parent)
    with contextlib.ExitStack() as stack:
        directory = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tipoff-edgegap-")))
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        sock = stack.enter_context(_bound(options))
        async with Tasks("edgegap emulator") as tasks:
            emulator = Emulator(games, options, chosen, directory, tasks)
            host = "127.0.0.1" if options.host == "0.0.0.0" else options.host  # noqa: S104 # compared, not bound
            await emulator.open(options.url or f"http://{host}:{sock.getsockname()[1]}", tasks)
            try:
                async with listening(sock, emulator.handle):
                    yield emulator
            finally:
                await emulator.close()


def _bound(options: Options) -> socket.socket:
    if options.fd is not None:
        return socket.socket(fileno=os.dup(options.fd))
    # Made anew it knows its protocol: asyncio turns Nagle's algorithm off only then, and answers would wait 40 ms.
    return socket.socket(fileno=socket.create_server((options.host, options.port), backlog=1024).detach())
