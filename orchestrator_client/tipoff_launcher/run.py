"""Running a launcher: what stands around it is opened before it, and closed after it.

For a process of its own (`python -m tipoff_launcher`) and for `tipoff up`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from tipoff_launcher.backends.interface import Backend
from tipoff_launcher.backends.process.backend import ProcessBackend
from tipoff_launcher.edgegap_compat.arbitrium import Arbitrium, ServerTokens
from tipoff_launcher.edgegap_compat.bevygap import games_without_namespace
from tipoff_launcher.edgegap_compat.context_endpoint import ContextEndpoint, bind, serve_contexts
from tipoff_launcher.edgegap_compat.place import find_place, where_to_listen
from tipoff_launcher.evidence import Matchmakers, lease_of
from tipoff_launcher.records import Records
from tipoff_launcher.recovery import Recovery
from tipoff_launcher.server_nats import nats_of_servers, warn_of_loopback
from tipoff_launcher.service import Launcher, publisher
from tipoff_launcher.settings import Settings
from tipoff_launcher.state_dir import held
from tipoff_launcher.supervisor import Servers
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_shared.errors import Unavailable
from tipoff_shared.games import Games
from tipoff_shared.nats.connection import Bus, connect
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.settings import NatsSettings

log = logging.getLogger(__name__)

_LOOK_AT_LOGS = 5.0


@asynccontextmanager
async def run_launcher(
    settings: Settings, games: Games, nats_settings: NatsSettings
) -> AsyncIterator[Launcher]:
    """A launcher for the time of the block; it answers when the block begins.

    Raises `ConfigError` when the state directory cannot be used, or another launcher has it or this name, and
    `Unavailable` when NATS, or the Docker engine, does not answer. With `die_with_parent` the loop's thread must live
    as long as this.

    The order of leaving: no more requests; those in hand; with `stop_servers_on_exit` the servers, all at once
    (the grace and a little); what servers may ask over HTTP; then NATS. A cancellation on the way leaves the rest to
    the next launcher.
    """
    with (
        held(settings.state_dir),
        closing(bind(where_to_listen(settings, games), settings.state_dir)) as sock,
    ):
        records = Records(settings.state_dir)
        server_tokens = ServerTokens.load(settings.state_dir)
        place = await find_place(settings, sock.getsockname())
        failed = asyncio.Event()
        servers_nats = nats_of_servers(settings, nats_settings)
        async with (
            connect(nats_settings, name=f"tipoff-launcher-{settings.host}") as bus,
            _open_backend(settings, games, nats_settings, records, failed) as backend,
            Tasks("launcher", on_failure=lambda exc: failed.set()) as tasks,
        ):
            servers = Servers(
                settings,
                games,
                servers_nats,
                backend,
                records,
                tasks,
                Arbitrium(place, server_tokens),
                tell=publisher(bus, settings.host),
            )
            recovery = Recovery(
                records,
                nats_settings.namespace,
                games,
                backend,
                servers,
                tasks,
                has_lease=lease_of(bus),
                connected_since=lambda: bus.connected_since,
                matchmaker_since=Matchmakers(bus).since,
                grace=settings.adopt_grace,
            )
            launcher = Launcher(settings, bus, servers, failed)
            for game in games_without_namespace(games, nats_settings.namespace):
                log.warning(
                    "game %r: bevygap's servers know no namespaces, so with TIPOFF_NAMESPACE=%s none of them is ever "
                    "ready; leave it empty",
                    game.name,
                    nats_settings.namespace,
                )
            await launcher.refuse_to_be_second()
            try:
                await recovery.recover()
            except OrchestratorError as exc:
                raise Unavailable(f"which servers run here is not known: {exc}") from exc
            tasks.start(_keep_logs_small(servers), "logs")
            tasks.start(_notice_the_end_of(bus, failed), "NATS")
            endpoint = ContextEndpoint(server_tokens, context=servers.context, stop=servers.stop_soon)
            async with serve_contexts(endpoint, sock):
                await launcher.serve()
                log.info("launcher of host %s serves; servers are kept in %s", settings.host, records.root)
                try:
                    yield launcher
                finally:
                    await launcher.quiet()
                    if settings.stop_servers_on_exit:
                        await servers.stop_all()


@asynccontextmanager
async def _open_backend(
    settings: Settings, games: Games, nats_settings: NatsSettings, records: Records, failed: asyncio.Event
) -> AsyncIterator[Backend]:
    if settings.backend == "docker":
        if settings.docker_network != "host" and not settings.docker_nats_host:
            warn_of_loopback(nats_settings)
        from tipoff_launcher.backends.docker.open import docker_backend  # aiohttp takes 200 ms to import

        async with docker_backend(
            settings, games, nats_settings.namespace, records, on_failure=lambda exc: failed.set()
        ) as backend:
            yield backend
        return
    yield ProcessBackend(
        games.base,
        die_with_parent=settings.die_with_parent,
        nice=settings.nice,
        listen_on=settings.listen_on,
        proxy_host=settings.reached_by_proxy,
    )


async def _keep_logs_small(servers: Servers) -> None:
    while True:
        await asyncio.sleep(_LOOK_AT_LOGS)
        servers.bound_logs()


async def _notice_the_end_of(bus: Bus, failed: asyncio.Event) -> None:
    await bus.closed.wait()
    log.error("the connection to NATS is gone for good: %s", bus.last_error or "no reason given")
    failed.set()
