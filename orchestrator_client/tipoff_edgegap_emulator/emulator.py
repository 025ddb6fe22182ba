"""Runs an emulated Edgegap account that listens on a socket. Start reading here."""

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
from tipoff_edgegap_emulator.deployment import Deployment
from tipoff_edgegap_emulator.effect_runner import Delivery, EffectRunner
from tipoff_edgegap_emulator.errors import Refused
from tipoff_edgegap_emulator.fault_plan import Fault, FaultPlan, PlannedFault
from tipoff_edgegap_emulator.http import Answer, Request, listening
from tipoff_edgegap_emulator.operations import Operations
from tipoff_edgegap_emulator.options import Options, app_key, first_version
from tipoff_edgegap_emulator.requests import Recorded, Requests
from tipoff_edgegap_emulator.sessions import Session, Sessions
from tipoff_edgegap_emulator.state import EmulatorState
from tipoff_launcher.backends.interface import Backend
from tipoff_launcher.backends.process.backend import ProcessBackend
from tipoff_shared.games import Games
from tipoff_shared.log_writer.client import LogWriter
from tipoff_shared.primitives.tasks import Tasks


class Emulator:
    """One account at Edgegap, at `url`. Made by `running_emulator`; all of it belongs to one event loop."""

    def __init__(
        self, games: Games, options: Options, url: str, backend: Backend, logs: Path, tasks: Tasks
    ) -> None:
        self.url = url
        self.token = options.token or str(uuid.uuid4())
        self.state = EmulatorState(options.rules)
        self.plan = FaultPlan()
        by_key = {app_key(game): game for game in games.all()}
        self._sessions = Sessions(self.state)
        self._runner = EffectRunner(
            self.state, self._sessions, self.plan, by_key, options, url, backend, logs, tasks
        )
        operations = Operations(self.state, self._sessions, self._runner, options.max_page)
        self._requests = Requests(operations, self.plan, self.token, options, tasks)
        self.fleet = self._runner.fleet
        if not options.empty:
            now = time.time()
            for (application, _), game in by_key.items():
                if application not in self.state.catalogue.applications:
                    self.state.catalogue.add_application(
                        {"name": application, "is_active": True, "image": ""}, now
                    )
                self.state.catalogue.add_version(application, first_version(game, options), now)

    def misbehave(self, operation: str, how: Fault, times: int | None = None) -> PlannedFault:
        """Plan a fault (fault_plan.py) for the next `times` uses of `operation`. None: until `behave()` or the planned
        fault's `cancel()`."""
        return self.plan.add(operation, how, times)

    def behave(self) -> None:
        """Drop every planned fault."""
        self.plan.clear()

    @property
    def requests(self) -> deque[Recorded]:
        """Every request, oldest first."""
        return self._requests.recorded

    @property
    def webhooks(self) -> deque[Delivery]:
        """Every webhook that was sent, oldest first."""
        return self._runner.deliveries

    @property
    def deployments(self) -> list[Deployment]:
        """The deployments that are not terminated, newest first."""
        return self.state.active()

    @property
    def sessions(self) -> list[Session]:
        """The sessions that were not deleted, oldest first."""
        return list(self._sessions.all.values())

    @property
    def problems(self) -> list[str]:
        """What was wrong with the requests so far."""
        return [f"{one.method} {one.path}: {problem}" for one in self.requests for problem in one.problems]

    def count(self, operation: str, status: int | None = None) -> int:
        """How many requests of `operation` there were; with `status`, how many of them got it."""
        return sum(one.operation == operation and status in (None, one.status) for one in self.requests)

    def vanish(self, request_id: str) -> None:
        """Make a deployment unknown to every operation, and stop its server."""
        self._runner.vanish(request_id)

    async def kill_server(self, request_id: str) -> None:
        """Kill the deployment's server, as a crash would."""
        await self.fleet.kill(request_id)

    async def send_webhook(self, url: str, body: Any) -> Delivery:
        """Send any body to any URL: a forged webhook, a late one, one of an unknown id."""
        return await self._runner.deliver(url, body)

    async def until(self, condition: Callable[[Emulator], bool], timeout: float = 10.0) -> None:
        """Wait until `condition` holds, at most `timeout` seconds. Raises `TimeoutError`."""
        changed = self._runner.changed
        async with asyncio.timeout(timeout), changed:
            await changed.wait_for(lambda: condition(self))

    async def handle(self, request: Request) -> Answer:
        """The answer to one request."""
        try:
            if request.path.startswith(control.PREFIX):
                return await self._control(request)
            return await self._requests.handle(request)
        finally:
            self._runner.tell()

    async def _control(self, request: Request) -> Answer:
        """Requests of another process that are not Edgegap's, see control.py."""
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
                    return Answer(200, control.add_fault(self.plan, request.body))
                case ("POST", "behave"):
                    self.behave()
                    return Answer(200, {})
                case ("POST", "kill", request_id) if request_id in self.fleet.running:
                    await self.kill_server(request_id)
                    return Answer(200, {})
        except Refused as refused:
            return Answer(refused.status, refused.body)
        return Answer(404, {"message": f"no such endpoint: {request.method} {request.path}"})

    async def close_webhook_connections(self) -> None:
        """Close the connections to the receivers of webhooks; the next webhook opens new ones."""
        await self._runner.close_webhook_connections()

    async def keep_time(self) -> None:
        """Start, restart, stop and forget deployments when their time has come, until cancelled."""
        await self._runner.keep_time()

    async def close(self) -> None:
        """Stop all servers."""
        await self._runner.close()


@asynccontextmanager
async def running_emulator(
    games: Games,
    options: Options | None = None,
    *,
    backend: Backend | None = None,
    logs: Path | None = None,
) -> AsyncIterator[Emulator]:
    """A listening emulator, during the block. `logs`: directory of the servers' output.

    Leaving first closes the socket, then stops all servers at once, then drops the webhooks that are on their way.
    Raises `OSError` when the port is taken.
    """
    options = options or Options()
    async with contextlib.AsyncExitStack() as stack:
        directory = logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tipoff-edgegap-")))
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        chosen = backend
        if chosen is None:
            writer = await stack.enter_async_context(LogWriter(directory))
            chosen = ProcessBackend(games.base, writer, die_with_parent=options.die_with_parent)
        sock = stack.enter_context(_bound(options))
        async with Tasks("edgegap emulator") as tasks:
            host = "127.0.0.1" if options.host == "0.0.0.0" else options.host  # noqa: S104 # compared, not bound
            url = options.url or f"http://{host}:{sock.getsockname()[1]}"
            emulator = Emulator(games, options, url, chosen, directory, tasks)
            tasks.start(emulator.keep_time(), "clock")
            try:
                async with listening(sock, emulator.handle):
                    yield emulator
            finally:
                await emulator.close()


def _bound(options: Options) -> socket.socket:
    if options.fd is not None:
        return socket.socket(fileno=os.dup(options.fd))
    # A socket made from the descriptor knows its protocol. Only then asyncio turns off Nagle's algorithm, which would
    # delay answers by 40 ms.
    return socket.socket(fileno=socket.create_server((options.host, options.port), backlog=1024).detach())
