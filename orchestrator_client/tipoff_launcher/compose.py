"""Builds a launcher from its settings, in dependency order, and closes it again.

For a separate process (`python -m tipoff_launcher`), for `tipoff up` and for tests.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from tipoff_launcher.backends.interface import Backend
from tipoff_launcher.backends.process.backend import ProcessBackend
from tipoff_launcher.edgegap_compat.arbitrium import Arbitrium, ServerTokens
from tipoff_launcher.edgegap_compat.bevygap import games_without_namespace
from tipoff_launcher.edgegap_compat.context_endpoint import ContextEndpoint, bind, serve_contexts
from tipoff_launcher.edgegap_compat.host_info import find_host_info, listen_address
from tipoff_launcher.environment import nats_for_servers, warn_about_loopback
from tipoff_launcher.records import Records, lock_state_dir
from tipoff_launcher.recovery import LeaseProbe, Recovery
from tipoff_launcher.registry import ServerRegistry
from tipoff_launcher.service import Launcher, event_publisher
from tipoff_launcher.settings import Settings
from tipoff_launcher.start import Starter
from tipoff_launcher.state_identity import StateIdentity, claim
from tipoff_launcher.supervisor import Supervisor
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import Game, Games
from tipoff_shared.games_follower import GamesFollower
from tipoff_shared.kv.buckets import buckets
from tipoff_shared.log_writer.client import LogWriter
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

_ROTATE_LOGS_EVERY = 5.0
_LOOK_AT_DISK_EVERY = 2.0


@asynccontextmanager
async def run_launcher(
    settings: Settings, games: Games, nats_settings: NatsSettings, *, own_process: bool = False
) -> AsyncIterator[Launcher]:
    """A launcher for the time of the block; it answers requests when the block begins. `own_process`: nothing else in
    this process starts processes, so what the launcher inherits from dead servers is killed and reaped.

    Raises `ConfigError` when the state directory cannot be used, or when another launcher has it or this name, and
    `Unavailable` when NATS or the Docker engine does not answer. With `die_with_parent` the event loop's thread must
    live as long as the block.

    Order of shutdown: no more requests; requests in hand; with `stop_servers_on_exit` all servers at once (within the
    grace and a little more); the context endpoint; NATS. If this is cancelled, the next launcher does the rest.
    """
    with (
        lock_state_dir(settings.state_dir),
        closing(bind(listen_address(settings, games), settings.state_dir)) as sock,
    ):
        identity = claim(settings.state_dir, adopt_copied=settings.adopt_copied)
        records = Records(settings.state_dir)
        tokens = ServerTokens.load(settings.state_dir)
        arbitrium = Arbitrium(await find_host_info(settings, sock.getsockname()), tokens)
        registry = ServerRegistry(records, settings.keep_stopped)
        servers_nats = nats_for_servers(settings, nats_settings)
        failed = asyncio.Event()
        async with (
            connect(nats_settings, name=f"tipoff-launcher-{settings.host}") as bus,
            _open_backend(settings, games, nats_settings, identity, failed, own_process) as backend,
            Tasks("launcher", on_failure=lambda exc: failed.set()) as tasks,
        ):
            published = GamesFollower(
                buckets(bus).games, games, functools.partial(_complaint, backend, settings)
            )
            starter = Starter(
                settings, games, servers_nats, backend, records, registry, arbitrium, published, identity.id
            )
            publish = event_publisher(bus, settings.host)
            supervisor = Supervisor(
                settings, games, records, registry, starter, arbitrium, published, tasks, publish
            )
            recovery = Recovery(
                records,
                identity,
                nats_settings.namespace,
                games,
                backend,
                supervisor,
                LeaseProbe(bus),
                tasks,
                grace=settings.adopt_grace,
            )
            endpoint = ContextEndpoint(tokens, context=supervisor.context, stop=supervisor.stop_soon)
            launcher = Launcher(settings, bus, supervisor, published, failed)
            _warn_about_namespace(games, nats_settings.namespace)
            await launcher.refuse_to_be_second()
            try:
                await published.refresh()
            except Unavailable as exc:
                log.info("the games are those of the file until NATS tells the published ones: %s", exc)
            await supervisor.look_at_disk()
            try:
                await recovery.recover()
            except OrchestratorError as exc:
                raise Unavailable(f"the servers that run here cannot be determined: {exc}") from exc
            tasks.start(_rotate_logs(supervisor), "logs")
            tasks.start(_look_at_disk(supervisor), "disk")
            tasks.start(published.run(), "published games")
            tasks.start(_fail_with_nats(bus, failed), "NATS")
            async with serve_contexts(endpoint, sock):
                await launcher.serve()
                log.info("launcher of host %s is ready; its state is in %s", settings.host, records.root)
                try:
                    yield launcher
                finally:
                    await launcher.stop_serving()
                    if settings.stop_servers_on_exit:
                        await supervisor.stop_all()


@asynccontextmanager
async def _open_backend(
    settings: Settings,
    games: Games,
    nats_settings: NatsSettings,
    identity: StateIdentity,
    failed: asyncio.Event,
    own_process: bool,
) -> AsyncIterator[Backend]:
    if settings.backend == "docker":
        if settings.docker_network != "host" and not settings.docker_nats_host:
            warn_about_loopback(nats_settings)
        from tipoff_launcher.backends.docker.backend import docker_backend  # aiohttp takes 200 ms to import

        async with docker_backend(
            settings,
            games,
            nats_settings.namespace,
            identity.copied_from,
            on_failure=lambda exc: failed.set(),
        ) as backend:
            yield backend
        return
    async with LogWriter(
        settings.state_dir, max_bytes=settings.max_log_bytes, rate=settings.max_log_rate
    ) as logs:
        processes = ProcessBackend(
            games.base,
            logs,
            owner=identity.id,
            die_with_parent=settings.die_with_parent,
            nice=settings.nice,
            listen_on=settings.listen_on,
            proxy_host=settings.reached_by_proxy,
            fixed_ports=settings.keeps_to_range,
        )
        async with processes.looking(own_process=own_process):
            yield processes


def _complaint(backend: Backend, settings: Settings, game: Game) -> str:
    """Why servers of the game cannot be started here; "" when they can, or another orchestrator starts them."""
    if game.orchestrator != "launcher":
        return ""
    if settings.backend == "process" and game.process is None:
        return "the games.toml of this launcher has no [game.process] with its command: add it there"
    if settings.backend == "docker" and game.docker is None:
        return "the games.toml of this launcher has no [game.docker] with its image: add it there"
    try:
        backend.check(game)
    except OrchestratorError as exc:
        return str(exc)
    return ""


def _warn_about_namespace(games: Games, namespace: str) -> None:
    for game in games_without_namespace(games, namespace):
        log.warning(
            "game %r: bevygap's servers know no namespaces, so with TIPOFF_NAMESPACE=%s none of them is ever ready; "
            "leave it empty",
            game.name,
            namespace,
        )


async def _rotate_logs(supervisor: Supervisor) -> None:
    while True:
        await asyncio.sleep(_ROTATE_LOGS_EVERY)
        supervisor.rotate_logs()


async def _look_at_disk(supervisor: Supervisor) -> None:
    while True:
        await asyncio.sleep(_LOOK_AT_DISK_EVERY)
        await supervisor.look_at_disk()


async def _fail_with_nats(bus: Bus, failed: asyncio.Event) -> None:
    await bus.closed.wait()
    log.error("the connection to NATS is gone for good: %s", bus.last_error or "no reason given")
    failed.set()
