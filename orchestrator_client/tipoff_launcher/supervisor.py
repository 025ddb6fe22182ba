"""The servers of this host, from start to end: which may start, what a stop does, what is told when one ends.

One task lives with each server from its start (or adoption) to its end. Every effect is written down first and is
idempotent: whatever line is the last before a crash, the next launcher finds what to do (recovery.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tipoff_launcher.backends import server_log
from tipoff_launcher.backends.exit_reason import describe
from tipoff_launcher.backends.interface import Backend, Exit, RunningServer
from tipoff_launcher.edgegap_compat.arbitrium import Arbitrium
from tipoff_launcher.records import Record, Records
from tipoff_launcher.register import Register, Server
from tipoff_launcher.settings import Settings
from tipoff_launcher.start import Starter, why_not_started
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_shared.games import Game, Games
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

_KILL_MARGIN = 5.0
"""Seconds beyond the grace in which a killed process is surely gone."""

_KILL_ALL_MARGIN = 30.0
"""The same for all of them at once: an engine removes ten containers a second."""

_START_PATIENCE = 5.0
"""Seconds for which a stop waits for a start, before it makes an end of it."""


class Servers:
    """`tell` is called at every start and end. All methods belong to one event loop."""

    def __init__(
        self,
        settings: Settings,
        games: Games,
        nats: NatsSettings,
        backend: Backend,
        records: Records,
        tasks: Tasks,
        arbitrium: Arbitrium,
        *,
        tell: Callable[[Deployment], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._games = games
        self._records = records
        self._tasks = tasks
        self._arbitrium = arbitrium
        self._tell = tell
        self._register = Register(records, settings.keep_stopped)
        self._starter = Starter(settings, games, nats, backend, records, self._register, arbitrium)
        self._asked_to_end: set[str] = set()

    # What one can ask.

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """Start one, or wait for the start of the same one; raises `OrchestratorError`. A start that takes long
        (an image is fetched) is answered as `STARTING`, and what it does stands in `reason`."""
        server = self._register.get(spec.deployment_id)
        if server is None:
            game = self._starter.game(spec)
            if self._register.was_stopped(spec.deployment_id):
                return Deployment(
                    spec.deployment_id,
                    spec.game,
                    spec.version,
                    RunState.STOPPED,
                    reason="stopped before it started",
                )
            self._check_room()
            server = self._register.add(self._starter.planned(spec, game), spec.event_key)
            self._tasks.start(self._live(server, spec, game), spec.deployment_id)
        elif (server.record.game, server.record.version) != (spec.game, spec.version):
            raise OrchestratorError(
                f"deployment {spec.deployment_id} is game {server.record.game!r} version "
                f"{server.record.version!r}, so it cannot be {spec.game!r} version {spec.version!r}"
            )
        await asyncio.shield(server.under_way)
        return server.record.deployment

    def get(self, deployment_id: str) -> Deployment | None:
        server = self._register.get(deployment_id)
        return None if server is None else server.record.deployment

    def context(self, deployment_id: str) -> dict[str, Any] | None:
        """What a server may know of itself; None when it does not run here."""
        server = self._register.get(deployment_id)
        if server is None or server.record.state is RunState.STOPPED:
            return None
        record = server.record
        game = self._games.get(record.game, record.version) or Game(record.game, record.version)
        return self._arbitrium.context(record.deployment_id, game, record.ports, digest_key=record.digest_key)

    def stop_soon(self, deployment_id: str) -> None:
        """As a server itself asks for it: the answer must be there before the server is gone."""
        if deployment_id not in self._asked_to_end:  # however often it asks
            log.info("%s asks to be ended", deployment_id)
            self._asked_to_end.add(deployment_id)
            self._tasks.start(self._stop_as_asked(deployment_id), f"{deployment_id}/stop")

    async def _stop_as_asked(self, deployment_id: str) -> None:
        try:
            await self.stop(deployment_id)
        except OrchestratorError as exc:
            log.warning("%s asked to be ended: %s", deployment_id, exc)
        finally:
            self._asked_to_end.discard(deployment_id)

    def living(self) -> list[Deployment]:
        return [server.record.deployment for server in self._register.living()]

    def runs(self, deployment_id: str) -> bool:
        server = self._register.get(deployment_id)
        return server is not None and server.record.state is not RunState.STOPPED

    async def stop(self, deployment_id: str, *, margin: float = _KILL_MARGIN) -> None:
        """Returns when it has ended; raises `OrchestratorUnavailable` when even SIGKILL has not ended it yet."""
        server = self._register.get(deployment_id)
        if server is None:
            self._register.remember_stopped(deployment_id)
            return
        with contextlib.suppress(OrchestratorError, TimeoutError):
            async with asyncio.timeout(_START_PATIENCE):
                await asyncio.shield(server.under_way)
        if server.record.state is RunState.STOPPED:
            return
        if server.running is not None:
            if not server.record.stopping:
                self._register.save(server, stopping=True)
            server.running.terminate(self._settings.stop_grace)
        elif self._register.get(server.id) is None:  # its start has failed, and nobody is to try again
            self._register.remember_stopped(deployment_id)
            return
        elif not server.record.stopping:  # once: a start that is being given up cannot be given up again
            server.change(stopping=True)
            server.patience.reschedule(asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(self._settings.stop_grace + margin):
                await server.ended.wait()
        except TimeoutError:
            raise OrchestratorUnavailable(
                f"deployment {deployment_id} has been killed, but its process or container is still there",
                retryable=True,
            ) from None

    async def kill(self, deployment_id: str) -> None:
        """End its process as a crash would; raises `OrchestratorError` when there is none."""
        server = self._register.get(deployment_id)
        if server is None or server.running is None or server.record.state is RunState.STOPPED:
            raise OrchestratorError(f"deployment {deployment_id} does not run here")
        await server.running.kill()

    async def stop_all(self) -> None:
        stops = (self.stop(server.id, margin=_KILL_ALL_MARGIN) for server in self._register.living())
        for result in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(result, OrchestratorError):
                log.error("%s", result)
            elif isinstance(result, BaseException):
                raise result

    def bound_logs(self) -> None:
        for server in self._register.living():
            path = self._records.log(server.id)
            try:
                if server_log.bound(path, self._settings.max_log_bytes):
                    log.info("the log of %s was over its size and has been moved to %s.1", server.id, path)
            except OSError as exc:
                log.warning("the log of %s cannot be kept small: %s", server.id, exc)

    # Starting.

    def _check_room(self) -> None:
        if len(self._register.living()) >= self._settings.max_servers:
            raise NoCapacity(
                f"{self._settings.max_servers} servers run on host {self._settings.host!r}, no more are allowed "
                "(TIPOFF_LAUNCHER_MAX_SERVERS)",
                retryable=True,
                retry_after=5,
            )

    async def _live(self, server: Server, spec: DeploySpec, game: Game) -> None:
        """One server from its start to its end."""
        try:
            async with server.patience:
                server.running = await self._starter.start(
                    server, spec, game, functools.partial(self._slow, server)
                )
        except BaseException as exc:
            await self._not_started(server, exc)
            if isinstance(exc, Exception):
                return
            raise
        self._register.save(server, state=RunState.RUNNING, reason="")
        if not server.under_way.done():
            server.under_way.set_result(None)
        log.info(
            "%s started: %s version %s, %s", server.id, game.name, game.version, server.running.native_id
        )
        if server.record.stopping:  # a stop that came at the very moment
            server.running.terminate(self._settings.stop_grace)
        await self._tell(server.record.deployment)
        await self._watch(server, server.running)

    async def _not_started(self, server: Server, exc: BaseException) -> None:
        """Whoever still waits for the answer gets the error; those who have been told that it starts, the end."""
        given_up = server.patience.expired()
        error = why_not_started(exc) if not given_up else OrchestratorError("stopped before it started")
        if isinstance(exc, OrchestratorError | OSError):
            log.warning("%s cannot be started: %s", server.id, error)
        elif isinstance(exc, Exception):  # of this game alone: the other servers need their launcher
            log.exception("%s cannot be started", server.id)
        if server.under_way.done() and isinstance(exc, Exception):
            self._register.end(server, str(error))
            await self._tell(server.record.deployment)
            return
        self._register.forget(server)
        if given_up:
            self._register.remember_stopped(server.id)
        server.ended.set()
        if not server.under_way.done():
            server.under_way.set_exception(error)
            server.under_way.exception()  # whoever asked may have gone

    def _slow(self, server: Server, text: str) -> None:
        """Its start takes long: whoever waits for it is told so, and what it is busy with."""
        if text == server.record.reason or server.running is not None:
            return
        server.change(reason=text)
        if not server.under_way.done():
            server.under_way.set_result(None)
        self._tasks.start(self._announce(server), f"{server.id}/progress")

    # Ending.

    async def _watch(self, server: Server, running: RunningServer) -> None:
        self._ended(server, await running.ended())
        await self._tell(server.record.deployment)

    def _ended(self, server: Server, how: Exit) -> None:
        words = server_log.last_words(self._records.log(server.id), self._starter.secrets(server))
        reason = describe(how, stopped=server.record.stopping, last_words=words)
        self._register.end(server, reason)
        log.info("%s ended: %s", server.id, reason)

    # What an earlier launcher has left, see recovery.py.

    def take_over(self, record: Record, running: RunningServer) -> None:
        """A server found running is ours again; a stop once asked for is carried through."""
        server = self._known(msgspec.structs.replace(record, state=RunState.RUNNING))
        server.running = running
        self._tasks.start(self._watch(server, running), server.id)
        if record.stopping:
            running.terminate(self._settings.stop_grace)

    def take_over_ended(self, record: Record) -> None:
        """A server that has ended, before or while no launcher was there to see it."""
        server = self._known(record)
        if record.state is RunState.STOPPED:
            self._register.has_ended(server)
        else:
            self._ended(server, Exit(None))
            self._tasks.start(self._announce(server), f"{server.id}/announce")

    def _known(self, record: Record) -> Server:
        server = self._register.add(record)
        server.under_way.set_result(None)
        return server

    async def _announce(self, server: Server) -> None:
        await self._tell(server.record.deployment)
