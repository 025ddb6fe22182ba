"""Starts one server: picks its ports, writes its key, makes its environment and calls the back end.

Every effect is recorded first, so that a crash leaves nothing that the next launcher does not know.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable

from tipoff_launcher.backends.interface import Backend, PortInUse, RunningServer, StartRequest
from tipoff_launcher.backends.ports import PortPicker
from tipoff_launcher.edgegap_compat.arbitrium import Arbitrium
from tipoff_launcher.edgegap_compat.bevygap import bevygap_environment, synthetic_ip
from tipoff_launcher.environment import server_environment
from tipoff_launcher.records import Record, Records
from tipoff_launcher.registry import Server, ServerRegistry
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
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.netcode import PrivateKey
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

_PORT_TRIES = 20

_SECRET_WORDS = ("PASSWORD", "SECRET", "TOKEN", "KEY")
_SECRET_LENGTH = 6
"""Characters of the shortest value that counts as a secret; shorter ones would blank out half of a log."""


class Starter:
    """Starts servers on `backend`. `nats`: how servers reach NATS; `owner`: the id of the state directory."""

    def __init__(
        self,
        settings: Settings,
        games: Games,
        nats: NatsSettings,
        backend: Backend,
        records: Records,
        registry: ServerRegistry,
        arbitrium: Arbitrium,
        published: GamesFollower,
        owner: str = "",
    ) -> None:
        self._settings = settings
        self._games = games
        self._nats = nats
        self._backend = backend
        self._records = records
        self._registry = registry
        self._arbitrium = arbitrium
        self._published = published
        self._owner = owner
        self._ports = PortPicker(settings.ports, backend.port_is_free)

    def game(self, spec: DeploySpec) -> Game:
        """The game of a spec. Raises `NotConfigured` when it is unknown or cannot be started here."""
        game = self._games.get(spec.game, spec.version)
        if game is None and (why := self._published.why_not(spec.game, spec.version)):
            raise NotConfigured(f"game {spec.game!r} version {spec.version!r} is published, but {why}")
        if game is None:
            known = ", ".join(f"{game.name!r} version {game.version!r}" for game in self._games.all())
            raise NotConfigured(
                f"game {spec.game!r} version {spec.version!r} is not in this launcher's games.toml; "
                f"there are {known}"
            )
        self._backend.check(game)
        return game

    def new_record(self, spec: DeploySpec, game: Game) -> Record:
        """The record of a server before its start."""
        held = {server.record.digest_key for server in self._registry.living()}
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
            owner=self._owner,
            own_key=spec.own_key and not game.bevygap,
        )

    async def start(
        self, server: Server, spec: DeploySpec, game: Game, progress: Callable[[str], None]
    ) -> RunningServer:
        """Start a server that is in the registry, on other ports when another program has some of them.

        A slow start calls `progress` with what it is doing. Cancelling leaves no server running. Raises
        `OrchestratorError` and `OSError`.
        """
        wanted = self._backend.ports(game, proxied=bool(spec.websocket_url) and not game.bevygap)
        refused: set[int] = set()
        for _ in range(_PORT_TRIES):
            held = {
                port.external for other in self._registry.living() for port in other.record.ports.values()
            }
            server.change(ports=self._ports.pick(wanted, held | refused))
            try:
                return await self._start_on_ports(server, spec, game, progress)
            except PortInUse as exc:
                log.warning("%s: trying other ports: %s", server.id, exc)
                refused |= {port.external for port in server.record.ports.values()}
        raise NoCapacity(
            f"other programs had the picked ports {_PORT_TRIES} times; TIPOFF_LAUNCHER_PORT_RANGE should name ports "
            "that no other program uses",
            retryable=True,
            retry_after=5,
        )

    async def _start_on_ports(
        self, server: Server, spec: DeploySpec, game: Game, progress: Callable[[str], None]
    ) -> RunningServer:
        server.change(proxy=self._backend.proxy_address(server.id, server.record.ports))
        self._records.save(server.record)
        key = self._key(server.record, game).reveal()
        key_file = self._records.write_key(server.id, key)
        environment = server_environment(
            os.environ,
            spec,
            game,
            self._settings,
            self._nats,
            key_file=key_file,
            ports=server.record.ports,
            backend=self._backend.environment(game),
            arbitrium=self._arbitrium.variables(server.id, server.record.ports),
        )
        if game.bevygap:
            environment = bevygap_environment(environment, key)
        request = StartRequest(server.record, game, environment, self._records.log(server.id), progress)
        return await self._backend.start(
            request, lambda native_id: self._records.save(server.change(native_id=native_id))
        )

    def _key(self, record: Record, game: Game) -> PrivateKey:
        """The netcode key that the server gets."""
        key = self._games.private_key(game)
        return key.of_deployment(record.deployment_id) if record.own_key else key

    def secrets(self, server: Server) -> list[str]:
        """The secrets a server knows, which the quoted end of its log must not show."""
        secrets = [
            self._nats.password.reveal(),
            server.event_key,
            server.nats_password,
            *self._arbitrium.secrets(server.id),
        ]
        if (game := self._games.get(server.record.game, server.record.version)) is not None:
            secrets += _own_secrets(game)
            key = self._key(server.record, game).reveal()
            secrets += [key.hex(), ", ".join(map(str, key)), ",".join(map(str, key)), repr(key)]
        return secrets


def _own_secrets(game: Game) -> list[str]:
    """The values in a game's environment in games.toml whose names look like secrets."""
    given = [spec.env for spec in (game.process, game.docker) if spec is not None]
    return [
        value
        for env in given
        for name, value in env.items()
        if len(value) >= _SECRET_LENGTH and any(word in name.upper() for word in _SECRET_WORDS)
    ]


def start_failure(exc: BaseException) -> OrchestratorError:
    """The error that `deploy` raises for a start that failed with `exc`."""
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
