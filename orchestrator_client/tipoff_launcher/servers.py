"""The servers of this host: which may start, what is written down, what is told when one ends.

One task lives with each server from its start (or adoption) to its end. Every effect is written down first and is
idempotent: whatever line is the last before a crash, the next launcher finds what to do (recovery.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tipoff_launcher import server_log
from tipoff_launcher.arbitrium import Arbitrium, synthetic_ip
from tipoff_launcher.backend import Backend, Exit, PortInUse, RunningServer, StartOrder
from tipoff_launcher.bevygap import for_bevygap
from tipoff_launcher.child_environment import child_environment
from tipoff_launcher.exit_reason import describe
from tipoff_launcher.ports import PortPicker
from tipoff_launcher.record import Record, Records
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import (
    Deployment,
    DeploySpec,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_shared.games import Game, Games
from tipoff_shared.settings import NatsSettings
from tipoff_shared.supervise import Tasks

log = logging.getLogger(__name__)

_REMEMBERED = 1000
_KILL_MARGIN = 5.0
"""Seconds beyond the grace in which a killed process is surely gone."""

_KILL_ALL_MARGIN = 30.0
"""The same for all of them at once: an engine removes ten containers a second."""

_START_PATIENCE = 5.0
"""Seconds for which a stop waits for a start, before it makes an end of it."""

_PORT_TRIES = 20

_SECRET_WORDS = ("PASSWORD", "SECRET", "TOKEN", "KEY")
_SECRET_LENGTH = 6
"""Characters: what is shorter would strike out half of what the server said."""


@dataclass(slots=True, eq=False)
class _Server:
    record: Record
    event_key: str = field(default="", repr=False)
    """Of the isolated profile; not known of those who were adopted."""
    running: RunningServer | None = None
    under_way: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """Done when deploy can be answered: it runs, or its start takes long; or fails as the start did."""
    patience: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(None))
    """Around its start: what makes an end of it."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def id(self) -> str:
        return self.record.deployment_id

    def change(self, **changes: object) -> Record:
        self.record = msgspec.structs.replace(self.record, **changes)
        return self.record


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
        self._nats = nats
        self._backend = backend
        self._records = records
        self._tasks = tasks
        self._arbitrium = arbitrium
        self._tell = tell
        self._ports = PortPicker(settings.ports, backend.port_is_free)
        self._servers: dict[str, _Server] = {}
        self._stopped_before: OrderedDict[str, None] = OrderedDict()
        self._asked_to_end: set[str] = set()

    # What one can ask.

    async def deploy(self, spec: DeploySpec) -> Deployment:
        """Start one, or wait for the start of the same one; raises `OrchestratorError`. A start that takes long
        (an image is fetched) is answered as `STARTING`, and what it does stands in `reason`."""
        server = self._servers.get(spec.deployment_id)
        if server is None:
            game = self._game(spec)
            if spec.deployment_id in self._stopped_before:
                return Deployment(
                    spec.deployment_id,
                    spec.game,
                    spec.version,
                    RunState.STOPPED,
                    reason="stopped before it started",
                )
            self._check_room()
            server = self._servers[spec.deployment_id] = _Server(self._planned(spec, game), spec.event_key)
            self._tasks.start(self._live(server, spec, game), spec.deployment_id)
        elif (server.record.game, server.record.version) != (spec.game, spec.version):
            raise OrchestratorError(
                f"deployment {spec.deployment_id} is game {server.record.game!r} version "
                f"{server.record.version!r}, so it cannot be {spec.game!r} version {spec.version!r}"
            )
        await asyncio.shield(server.under_way)
        return server.record.deployment

    def get(self, deployment_id: str) -> Deployment | None:
        server = self._servers.get(deployment_id)
        return None if server is None else server.record.deployment

    def context(self, deployment_id: str) -> dict[str, Any] | None:
        """What a server may know of itself; None when it does not run here."""
        server = self._servers.get(deployment_id)
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
        return [server.record.deployment for server in self._living()]

    def runs(self, deployment_id: str) -> bool:
        server = self._servers.get(deployment_id)
        return server is not None and server.record.state is not RunState.STOPPED

    async def stop(self, deployment_id: str, *, margin: float = _KILL_MARGIN) -> None:
        """Returns when it has ended; raises `OrchestratorUnavailable` when even SIGKILL has not ended it yet."""
        server = self._servers.get(deployment_id)
        if server is None:
            self._remember(deployment_id)
            return
        with contextlib.suppress(OrchestratorError, TimeoutError):
            async with asyncio.timeout(_START_PATIENCE):
                await asyncio.shield(server.under_way)
        if server.record.state is RunState.STOPPED:
            return
        if server.running is not None:
            if not server.record.stopping:
                self._save(server, stopping=True)
            server.running.terminate(self._settings.stop_grace)
        elif server.id not in self._servers:  # its start has failed, and nobody is to try again
            self._remember(deployment_id)
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
        server = self._servers.get(deployment_id)
        if server is None or server.running is None or server.record.state is RunState.STOPPED:
            raise OrchestratorError(f"deployment {deployment_id} does not run here")
        await server.running.kill()

    async def stop_all(self) -> None:
        stops = (self.stop(server.id, margin=_KILL_ALL_MARGIN) for server in self._living())
        for result in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(result, OrchestratorError):
                log.error("%s", result)
            elif isinstance(result, BaseException):
                raise result

    def bound_logs(self) -> None:
        for server in self._living():
            path = self._records.log(server.id)
            try:
                if server_log.bound(path, self._settings.max_log_bytes):
                    log.info("the log of %s was over its size and has been moved to %s.1", server.id, path)
            except OSError as exc:
                log.warning("the log of %s cannot be kept small: %s", server.id, exc)

    # Starting.

    def _game(self, spec: DeploySpec) -> Game:
        game = self._games.get(spec.game, spec.version)
        if game is None:
            known = ", ".join(f"{game.name!r} version {game.version!r}" for game in self._games.all())
            raise NotConfigured(
                f"game {spec.game!r} version {spec.version!r} is not in this launcher's games.toml; "
                f"there are {known}"
            )
        self._backend.check(game)
        return game

    def _living(self) -> list[_Server]:
        return [server for server in self._servers.values() if server.record.state is not RunState.STOPPED]

    def _check_room(self) -> None:
        if len(self._living()) >= self._settings.max_servers:
            raise NoCapacity(
                f"{self._settings.max_servers} servers run on host {self._settings.host!r}, no more are allowed "
                "(TIPOFF_LAUNCHER_MAX_SERVERS)",
                retryable=True,
                retry_after=5,
            )

    def _planned(self, spec: DeploySpec, game: Game) -> Record:
        held = {server.record.digest_key for server in self._living()}
        return Record(
            spec.deployment_id,
            self._nats.namespace,
            spec.game,
            spec.version,
            RunState.STARTING,
            self._backend.name,
            created_at=time.time(),
            host=self._settings.main_public_host,
            digest_key=synthetic_ip(spec.deployment_id, held) if game.bevygap else "",
            isolated=bool(spec.event_key),
        )

    async def _live(self, server: _Server, spec: DeploySpec, game: Game) -> None:
        """One server from its start to its end."""
        try:
            async with server.patience:
                server.running = await self._start(server, spec, game)
        except BaseException as exc:
            await self._not_started(server, exc)
            if isinstance(exc, Exception):
                return
            raise
        self._save(server, state=RunState.RUNNING, reason="")
        if not server.under_way.done():
            server.under_way.set_result(None)
        log.info(
            "%s started: %s version %s, %s", server.id, game.name, game.version, server.running.native_id
        )
        if server.record.stopping:  # a stop that came at the very moment
            server.running.terminate(self._settings.stop_grace)
        await self._tell(server.record.deployment)
        await self._watch(server, server.running)

    async def _not_started(self, server: _Server, exc: BaseException) -> None:
        """Whoever still waits for the answer gets the error; those who have been told that it starts, the end."""
        given_up = server.patience.expired()
        error = (
            _as_orchestrator_error(exc) if not given_up else OrchestratorError("stopped before it started")
        )
        if isinstance(exc, OrchestratorError | OSError):
            log.warning("%s cannot be started: %s", server.id, error)
        elif isinstance(exc, Exception):  # of this game alone: the other servers need their launcher
            log.exception("%s cannot be started", server.id)
        if server.under_way.done() and isinstance(exc, Exception):
            self._save(server, state=RunState.STOPPED, stopped_at=time.time(), reason=str(error))
            self._records.remove_key(server.id)
            server.ended.set()
            self._prune()
            await self._tell(server.record.deployment)
            return
        del self._servers[server.id]
        self._records.forget(server.id)
        if given_up:
            self._remember(server.id)
        server.ended.set()
        if not server.under_way.done():
            server.under_way.set_exception(error)
            server.under_way.exception()  # whoever asked may have gone

    async def _start(self, server: _Server, spec: DeploySpec, game: Game) -> RunningServer:
        wishes = self._backend.ports(game)
        refused: set[int] = set()
        for _ in range(_PORT_TRIES):
            held = {port.external for other in self._living() for port in other.record.ports.values()}
            server.change(ports=self._ports.pick(wishes, held | refused))
            try:
                return await self._start_on_its_ports(server, spec, game)
            except PortInUse as exc:
                log.warning("%s gets other ports: %s", server.id, exc)
                refused |= {port.external for port in server.record.ports.values()}
        raise NoCapacity(
            f"{_PORT_TRIES} times other programs had the ports that were picked; TIPOFF_LAUNCHER_PORT_RANGE should "
            "name ports that nobody else uses",
            retryable=True,
            retry_after=5,
        )

    async def _start_on_its_ports(self, server: _Server, spec: DeploySpec, game: Game) -> RunningServer:
        server.change(proxy=self._backend.proxy(server.id, server.record.ports))
        self._records.save(server.record)
        key = self._games.private_key(game).reveal()
        key_file = self._records.write_key(server.id, key)
        environment = child_environment(
            os.environ,
            spec,
            game,
            self._settings,
            self._nats,
            key_file=key_file,
            ports=server.record.ports,
            surroundings=self._backend.surroundings(game),
            arbitrium=self._arbitrium.variables(server.id, server.record.ports),
        )
        if game.bevygap:
            environment = for_bevygap(environment, key)

        def progress(text: str) -> None:
            self._slow(server, text)

        order = StartOrder(server.record, game, environment, self._records.log(server.id), progress)
        return await self._backend.start(
            order, lambda native_id: self._records.save(server.change(native_id=native_id))
        )

    def _slow(self, server: _Server, text: str) -> None:
        """Its start takes long: whoever waits for it is told so, and what it is busy with."""
        if text == server.record.reason or server.running is not None:
            return
        server.change(reason=text)
        if not server.under_way.done():
            server.under_way.set_result(None)
        self._tasks.start(self._announce(server), f"{server.id}/progress")

    # Ending.

    async def _watch(self, server: _Server, running: RunningServer) -> None:
        self._ended(server, await running.ended())
        await self._tell(server.record.deployment)

    def _ended(self, server: _Server, how: Exit) -> None:
        words = server_log.last_words(self._records.log(server.id), self._secrets(server))
        reason = describe(how, stopped=server.record.stopping, last_words=words)
        self._save(server, state=RunState.STOPPED, stopped_at=time.time(), reason=reason)
        self._records.remove_key(server.id)
        server.ended.set()
        log.info("%s ended: %s", server.id, reason)
        self._prune()

    def _secrets(self, server: _Server) -> list[str]:
        """What a server may know and its quoted last words must not show."""
        secrets = [self._nats.password.reveal(), server.event_key, *self._arbitrium.secrets(server.id)]
        if (game := self._games.get(server.record.game, server.record.version)) is not None:
            secrets += _own_secrets(game)
            key = self._games.private_key(game).reveal()
            secrets += [key.hex(), ", ".join(map(str, key)), ",".join(map(str, key)), repr(key)]
        return secrets

    def _prune(self) -> None:
        stopped = [server for server in self._servers.values() if server.record.state is RunState.STOPPED]
        stopped.sort(key=lambda server: server.record.stopped_at)
        for server in stopped[: max(0, len(stopped) - self._settings.keep_stopped)]:
            del self._servers[server.id]
            self._records.forget(server.id)
            self._remember(server.id)

    def _remember(self, deployment_id: str) -> None:
        """A deploy that comes late, or twice, must not start what has been stopped."""
        self._stopped_before[deployment_id] = None
        self._stopped_before.move_to_end(deployment_id)
        if len(self._stopped_before) > _REMEMBERED:
            self._stopped_before.popitem(last=False)

    def _save(self, server: _Server, **changes: object) -> None:
        """Write down what has already happened: the truth is then the server, not the disk."""
        record = server.change(**changes)
        try:
            self._records.save(record)
        except OSError as exc:
            log.error("the record of %s cannot be written: %s", server.id, exc)  # noqa: TRY400 # no trace needed

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
            self._records.remove_key(server.id)
            server.ended.set()
            self._prune()
        else:
            self._ended(server, Exit(None))
            self._tasks.start(self._announce(server), f"{server.id}/announce")

    def _known(self, record: Record) -> _Server:
        server = self._servers[record.deployment_id] = _Server(record)
        server.under_way.set_result(None)
        return server

    async def _announce(self, server: _Server) -> None:
        await self._tell(server.record.deployment)


def _own_secrets(game: Game) -> list[str]:
    """The values that games.toml gives its servers and that, by their names, are nobody else's business."""
    given = [spec.env for spec in (game.process, game.docker) if spec is not None]
    return [
        value
        for env in given
        for name, value in env.items()
        if len(value) >= _SECRET_LENGTH and any(word in name.upper() for word in _SECRET_WORDS)
    ]


def _as_orchestrator_error(exc: BaseException) -> OrchestratorError:
    if isinstance(exc, OrchestratorError):
        return exc
    if isinstance(exc, OSError):
        where = f"{exc.filename}: " if exc.filename else ""
        return OrchestratorUnavailable(
            f"the server cannot be started: {where}{exc.strerror or exc}", retryable=True
        )
    if isinstance(exc, asyncio.CancelledError):
        return OrchestratorUnavailable("the launcher is ending", retryable=True)
    return OrchestratorError("the launcher failed; its log says why")
