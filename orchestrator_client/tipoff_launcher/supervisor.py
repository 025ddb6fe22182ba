"""Supervises the servers of this host: decides which may start, carries out stops, reports when one ends.

One task lives with each server from its start (or adoption) to its end. Every effect is recorded first and is
idempotent: wherever a launcher crashes, the next one finds what is left to do (recovery.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from tipoff_launcher.backends import server_log
from tipoff_launcher.backends.interface import ExitStatus, RunningServer
from tipoff_launcher.edgegap_compat.arbitrium import Arbitrium
from tipoff_launcher.records import Record, Records
from tipoff_launcher.registry import Server, ServerRegistry
from tipoff_launcher.settings import Settings
from tipoff_launcher.start import Starter, start_failure
from tipoff_orchestrator_client.base import (
    LAST_WORDS,
    STOPPED_BY_FORCE,
    Deployment,
    DeploySpec,
    NoCapacity,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_orchestrator_client.wire import LogRequest, ServerLog
from tipoff_shared.disk_space import disk_space
from tipoff_shared.errors import Unavailable
from tipoff_shared.file_limit import within_file_limit
from tipoff_shared.games import Game, Games
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.waiting import wait_for_event

log = logging.getLogger(__name__)

_KILL_MARGIN = 5.0
"""Seconds after the grace within which a killed process has certainly ended."""

_KILL_ALL_MARGIN = 30.0
"""The same when all servers are stopped at once: an engine removes ten containers a second."""

_START_PATIENCE = 5.0
"""Seconds that a stop waits for a start to complete, before it cancels the start."""


_LEAST_OF_A_LOG = 8192
"""Bytes of one log in an answer, however many servers there are."""
_FILES_OF_A_SERVER = 8
"""Open files of the launcher for each server: its process, its log and pipes, a request about it."""


class Supervisor:
    """All servers of one launcher. Calls `publish` at every start and end. All methods belong to one event loop."""

    def __init__(
        self,
        settings: Settings,
        games: Games,
        records: Records,
        registry: ServerRegistry,
        starter: Starter,
        arbitrium: Arbitrium,
        published: GamesFollower,
        tasks: Tasks,
        publish: Callable[[Deployment], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._games = games
        self._records = records
        self._registry = registry
        self._starter = starter
        self._arbitrium = arbitrium
        self._published = published
        self._tasks = tasks
        self._publish = publish
        self._stopping_itself: set[str] = set()
        self._most = within_file_limit(
            settings.max_servers, "servers (TIPOFF_LAUNCHER_MAX_SERVERS)", files_each=_FILES_OF_A_SERVER
        )
        self._first_log = 0
        self._disk = ""
        """What is wrong with the disk, for people."""

    # What clients and servers ask for.

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """Start a server, or wait for the start of the same one. Raises `OrchestratorError`.

        A slow start (an image is fetched) returns `STARTING`, with what it is doing in `reason`. A server that was
        stopped is never started again. Cancelling does not stop the start.
        """
        try:
            await self._published.catch_up(spec.games_revision)
        except Unavailable as exc:
            log.info("the games of revision %d are not known yet: %s", spec.games_revision, exc)
        server = self._registry.get(spec.deployment_id)
        if server is None:
            game = self._starter.game(spec)
            if self._registry.was_stopped(spec.deployment_id):
                return Deployment(
                    spec.deployment_id,
                    spec.game,
                    spec.version,
                    RunState.STOPPED,
                    reason="stopped before it started",
                )
            self._check_capacity()
            server = self._registry.add(
                self._starter.new_record(spec, game), spec.event_key, spec.nats_password
            )
            self._tasks.start(self._run(server, spec, game), spec.deployment_id)
        elif (server.record.game, server.record.version) != (spec.game, spec.version):
            raise OrchestratorError(
                f"deployment {spec.deployment_id} is game {server.record.game!r} version "
                f"{server.record.version!r}, so it cannot be {spec.game!r} version {spec.version!r}"
            )
        await asyncio.shield(server.answer)
        return server.record.deployment

    def get(self, deployment_id: str) -> Deployment | None:
        """A server that runs or ended recently."""
        server = self._registry.get(deployment_id)
        return None if server is None else server.record.deployment

    def context(self, deployment_id: str) -> dict[str, Any] | None:
        """The context that Edgegap would give the server; None when it does not run here."""
        server = self._registry.get(deployment_id)
        if server is None or server.record.state is RunState.STOPPED:
            return None
        record = server.record
        game = self._games.get(record.game, record.version) or Game(record.game, record.version)
        return self._arbitrium.context(record.deployment_id, game, record.ports, digest_key=record.digest_key)

    def stop_soon(self, deployment_id: str) -> None:
        """Stop a server that asks for it itself, in the background: its answer must arrive before it is stopped.
        Repeating the call changes nothing."""
        if deployment_id not in self._stopping_itself:
            log.info("%s asks to be stopped", deployment_id)
            self._stopping_itself.add(deployment_id)
            self._tasks.start(self._stop_soon(deployment_id), f"{deployment_id}/stop")

    async def _stop_soon(self, deployment_id: str) -> None:
        try:
            await self.stop(deployment_id)
        except OrchestratorError as exc:
            log.warning("%s asked to be stopped: %s", deployment_id, exc)
        finally:
            self._stopping_itself.discard(deployment_id)

    def living(self) -> list[Deployment]:
        """The servers that have not ended."""
        return [server.record.deployment for server in self._registry.living()]

    def runs(self, deployment_id: str) -> bool:
        """Whether the server is known and has not ended."""
        server = self._registry.get(deployment_id)
        return server is not None and server.record.state is not RunState.STOPPED

    async def stop(self, deployment_id: str, *, margin: float = _KILL_MARGIN) -> None:
        """Stop a server and return when it has ended. Idempotent; an unknown id will never be started.

        Raises `OrchestratorUnavailable` when it still exists `margin` seconds after it was killed. Cancelling leaves
        the stop going on.
        """
        server = self._registry.get(deployment_id)
        if server is None:
            self._registry.remember_stopped(deployment_id)
            return
        with contextlib.suppress(OrchestratorError, TimeoutError):
            async with asyncio.timeout(_START_PATIENCE):
                await asyncio.shield(server.answer)
        if server.record.state is RunState.STOPPED:
            return
        if server.running is not None:
            if not server.record.stopping:
                self._registry.save(server, stopping=True)
            server.running.terminate(self._settings.stop_grace)
        elif self._registry.get(server.id) is None:  # its start has failed, and must not be repeated
            self._registry.remember_stopped(deployment_id)
            return
        elif not server.record.stopping:  # only once: a timeout that has expired cannot be rescheduled
            server.change(stopping=True)
            server.start_timeout.reschedule(asyncio.get_running_loop().time())
        if not await wait_for_event(server.ended, self._settings.stop_grace + margin):
            raise OrchestratorUnavailable(
                f"deployment {deployment_id} has been killed, but its process or container is still there",
                retryable=True,
            )

    async def kill(self, deployment_id: str) -> None:
        """Kill the server's process as a crash would. Raises `OrchestratorError` when it does not run here."""
        server = self._registry.get(deployment_id)
        if server is None or server.running is None or server.record.state is RunState.STOPPED:
            raise OrchestratorError(f"deployment {deployment_id} does not run here")
        await server.running.kill()

    async def stop_all(self) -> None:
        """Stop all servers at once and return when they have ended; only logs an `OrchestratorError`."""
        stops = (self.stop(server.id, margin=_KILL_ALL_MARGIN) for server in self._registry.living())
        for result in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(result, OrchestratorError):
                log.error("%s", result)
            elif isinstance(result, BaseException):
                raise result

    def read_logs(self, request: LogRequest, max_bytes: int) -> list[ServerLog]:
        """New lines of the servers that `request` selects, and parts without lines, until there are about `max_bytes`
        of them; the next request gets the others. Reads files. Raises `Malformed` for a cursor that is none."""
        chosen = [
            (server, server.record)
            for server in self._registry.all()
            if request.select in ("", server.id, server.record.game)
        ]
        each = max(_LEAST_OF_A_LOG, max_bytes // max(1, len(chosen)))
        self._first_log += 1  # of many servers, other ones come first each time
        first = self._first_log % max(1, len(chosen))
        found: list[ServerLog] = []
        for server, record in chosen[first:] + chosen[:first]:
            if max_bytes <= 0:
                break
            ended = record.state is RunState.STOPPED
            part = server_log.read_part(
                self._records.log(server.id),
                server_log.check_cursor(request.cursors.get(server.id, "")),
                tail=-1 if 0 < request.whole_since <= record.created_at else request.tail,
                max_bytes=each,
                ended=ended,
                secrets=self._starter.secrets(server),
            )
            max_bytes -= sum(map(len, part.lines))
            found.append(
                ServerLog(
                    server.id,
                    record.game,
                    record.version,
                    running=not ended,
                    lines=part.lines,
                    cursor=part.cursor,
                    lost=part.lost,
                    reason=record.reason if ended else "",
                )
            )
        return found

    def rotate_logs(self) -> None:
        """Move logs aside that are larger than `max_log_bytes`: those of servers that an earlier release started, which
        write into the file themselves."""
        for server in self._registry.living():
            path = self._records.log(server.id)
            try:
                if server_log.rotate(path, self._settings.max_log_bytes):
                    log.info("the log of %s was too large and has been moved to %s.1", server.id, path)
            except OSError as exc:
                log.warning("the log of %s cannot be moved aside: %s", server.id, exc)

    # Starting.

    async def look_at_disk(self) -> None:
        """Note, and log once, whether the disk has room for another server's records and log."""
        try:
            space = await disk_space(self._settings.state_dir)
        except OSError as exc:
            log.warning("the free space of %s is not known: %s", self._settings.state_dir, exc)
            return
        before, self._disk = self._disk, space.problem(self._settings.min_free_disk * 2**20)
        if self._disk and not before:
            log.error("no server is started: %s", self._disk)
        elif before and not self._disk:
            log.warning("there is room on the disk of %s again", self._settings.state_dir)

    @property
    def problems(self) -> list[str]:
        """What keeps this launcher from starting servers, for people."""
        return [self._disk] if self._disk else []

    def _check_capacity(self) -> None:
        if self._disk:
            raise NoCapacity(f"host {self._settings.host!r}: {self._disk}", retryable=True, retry_after=5)
        if len(self._registry.living()) >= self._most:
            why = "TIPOFF_LAUNCHER_MAX_SERVERS" if self._most == self._settings.max_servers else "ulimit -n"
            raise NoCapacity(
                f"{self._most} servers run on host {self._settings.host!r}, no more are allowed ({why})",
                retryable=True,
                retry_after=5,
            )

    async def _run(self, server: Server, spec: DeploySpec, game: Game) -> None:
        """One server from its start to its end."""
        try:
            async with server.start_timeout:
                progress = functools.partial(self._slow_start, server)
                server.running = await self._starter.start(server, spec, game, progress)
        except BaseException as exc:
            await self._start_failed(server, exc)
            if isinstance(exc, Exception):
                return
            raise
        self._registry.save(server, state=RunState.RUNNING, reason="")
        if not server.answer.done():
            server.answer.set_result(None)
        log.info(
            "%s started: %s version %s, %s", server.id, game.name, game.version, server.running.native_id
        )
        if server.record.stopping:  # a stop came in the moment the start completed
            server.running.terminate(self._settings.stop_grace)
        await self._publish(server.record.deployment)
        await self._watch(server, server.running)

    async def _start_failed(self, server: Server, exc: BaseException) -> None:
        """A deploy that still waits gets the error. One that was answered with STARTING gets an event with the end."""
        stopped = server.start_timeout.expired()
        error = OrchestratorError("stopped before it started") if stopped else start_failure(exc)
        if isinstance(exc, OrchestratorError | OSError):
            log.warning("%s cannot be started: %s", server.id, error)
        elif isinstance(exc, Exception):  # the launcher goes on for the other servers
            log.exception("%s cannot be started", server.id)
        if server.answer.done() and isinstance(exc, Exception):
            self._registry.end(server, str(error))
            await self._publish(server.record.deployment)
            return
        self._registry.forget(server)
        if stopped:
            self._registry.remember_stopped(server.id)
        server.ended.set()
        if not server.answer.done():
            server.answer.set_exception(error)
            server.answer.exception()  # the client may have disconnected

    def _slow_start(self, server: Server, text: str) -> None:
        """Answer `deploy` with STARTING, and publish what the start is doing."""
        if text == server.record.reason or server.running is not None:
            return
        server.change(reason=text)
        if not server.answer.done():
            server.answer.set_result(None)
        self._tasks.start(self._publish_state(server), f"{server.id}/progress")

    # Ending.

    async def _watch(self, server: Server, running: RunningServer) -> None:
        self._ended(server, await running.wait())
        await self._publish(server.record.deployment)

    def _ended(self, server: Server, status: ExitStatus) -> None:
        lines = server_log.last_lines(self._records.log(server.id), self._starter.secrets(server))
        reason = exit_reason(status, stopped=server.record.stopping, last_lines=lines)
        self._registry.end(server, reason)
        log.info("%s ended: %s", server.id, reason)

    # What an earlier launcher has left, see recovery.py.

    def adopt(self, record: Record, running: RunningServer) -> None:
        """Supervise a server found running; a stop that was requested before is completed."""
        server = self._add_answered(msgspec.structs.replace(record, state=RunState.RUNNING))
        server.running = running
        self._tasks.start(self._watch(server, running), server.id)
        if record.stopping:
            running.terminate(self._settings.stop_grace)

    def adopt_ended(self, record: Record) -> None:
        """Know a server that has ended, perhaps while no launcher ran."""
        server = self._add_answered(record)
        if record.state is RunState.STOPPED:
            self._registry.has_ended(server)
        else:
            self._ended(server, ExitStatus(None))
            self._tasks.start(self._publish_state(server), f"{server.id}/ended")

    def _add_answered(self, record: Record) -> Server:
        server = self._registry.add(record)
        server.answer.set_result(None)
        return server

    async def _publish_state(self, server: Server) -> None:
        await self._publish(server.record.deployment)


def exit_reason(status: ExitStatus, *, stopped: bool, last_lines: str) -> str:
    """Why a server ended, for people. `stopped`: a stop was requested. `last_lines` of its log are quoted where they
    may explain something."""
    if stopped:
        return STOPPED_BY_FORCE if status.code == -signal.SIGKILL else "stopped"
    if status.note:
        text = status.note
    elif status.code is None:
        text = "ended (with which code is not known: an earlier launcher started it)"
    elif status.code < 0:
        try:
            text = f"killed by signal {-status.code} ({signal.Signals(-status.code).name})"
        except ValueError:
            text = f"killed by signal {-status.code}"
    else:
        text = f"exited with code {status.code}"
    return f"{text}{LAST_WORDS}{last_lines}" if last_lines and status.code != 0 else text
