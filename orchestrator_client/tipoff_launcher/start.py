"""How a server is started: what it is planned to be, its ports, its key, its environment.

Every effect is written down first, so that a crash leaves nothing that the next launcher does not know of.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from tipoff_launcher.backends.interface import Backend, PortInUse, RunningServer, StartOrder
from tipoff_launcher.child_environment import child_environment
from tipoff_launcher.edgegap_compat.arbitrium import Arbitrium, synthetic_ip
from tipoff_launcher.edgegap_compat.bevygap import for_bevygap
from tipoff_launcher.ports import PortPicker
from tipoff_launcher.records import Record, Records
from tipoff_launcher.register import Register, Server
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import (
    DeploySpec,
    NoCapacity,
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    RunState,
)
from tipoff_shared.games import Game, Games
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

_PORT_TRIES = 20

_SECRET_WORDS = ("PASSWORD", "SECRET", "TOKEN", "KEY")
_SECRET_LENGTH = 6
"""Characters: what is shorter would strike out half of what the server said."""


class Starter:
    """`nats`: how servers get into NATS."""

    def __init__(
        self,
        settings: Settings,
        games: Games,
        nats: NatsSettings,
        backend: Backend,
        records: Records,
        register: Register,
        arbitrium: Arbitrium,
    ) -> None:
        self._settings = settings
        self._games = games
        self._nats = nats
        self._backend = backend
        self._records = records
        self._register = register
        self._arbitrium = arbitrium
        self._ports = PortPicker(settings.ports, backend.port_is_free)

    def game(self, spec: DeploySpec) -> Game:
        """The game that is asked for. Raises `NotConfigured`."""
        game = self._games.get(spec.game, spec.version)
        if game is None:
            known = ", ".join(f"{game.name!r} version {game.version!r}" for game in self._games.all())
            raise NotConfigured(
                f"game {spec.game!r} version {spec.version!r} is not in this launcher's games.toml; "
                f"there are {known}"
            )
        self._backend.check(game)
        return game

    def planned(self, spec: DeploySpec, game: Game) -> Record:
        """What is to be written down of it first."""
        held = {server.record.digest_key for server in self._register.living()}
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

    async def start(
        self, server: Server, spec: DeploySpec, game: Game, progress: Callable[[str], None]
    ) -> RunningServer:
        """`progress` is told what a start that takes long is busy with. Raises `OrchestratorError` and `OSError`."""
        wishes = self._backend.ports(game)
        refused: set[int] = set()
        for _ in range(_PORT_TRIES):
            held = {
                port.external for other in self._register.living() for port in other.record.ports.values()
            }
            server.change(ports=self._ports.pick(wishes, held | refused))
            try:
                return await self._start_on_its_ports(server, spec, game, progress)
            except PortInUse as exc:
                log.warning("%s gets other ports: %s", server.id, exc)
                refused |= {port.external for port in server.record.ports.values()}
        raise NoCapacity(
            f"{_PORT_TRIES} times other programs had the ports that were picked; TIPOFF_LAUNCHER_PORT_RANGE should "
            "name ports that nobody else uses",
            retryable=True,
            retry_after=5,
        )

    async def _start_on_its_ports(
        self, server: Server, spec: DeploySpec, game: Game, progress: Callable[[str], None]
    ) -> RunningServer:
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
        order = StartOrder(server.record, game, environment, self._records.log(server.id), progress)
        return await self._backend.start(
            order, lambda native_id: self._records.save(server.change(native_id=native_id))
        )

    def secrets(self, server: Server) -> list[str]:
        """What a server may know and its quoted last words must not show."""
        secrets = [self._nats.password.reveal(), server.event_key, *self._arbitrium.secrets(server.id)]
        if (game := self._games.get(server.record.game, server.record.version)) is not None:
            secrets += _own_secrets(game)
            key = self._games.private_key(game).reveal()
            secrets += [key.hex(), ", ".join(map(str, key)), ",".join(map(str, key)), repr(key)]
        return secrets


def _own_secrets(game: Game) -> list[str]:
    """The values that games.toml gives its servers and that, by their names, are nobody else's business."""
    given = [spec.env for spec in (game.process, game.docker) if spec is not None]
    return [
        value
        for env in given
        for name, value in env.items()
        if len(value) >= _SECRET_LENGTH and any(word in name.upper() for word in _SECRET_WORDS)
    ]


def why_not_started(exc: BaseException) -> OrchestratorError:
    """What whoever waits for the start is told."""
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
