"""The launcher as a service: requests come over NATS, servers run on this host.

`run_launcher` is the whole of it, for a process of its own (`python -m tipoff_launcher`) and for `tipoff up`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import functools
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tipoff_launcher.arbitrium import Arbitrium, ServerTokens
from tipoff_launcher.backend import Backend
from tipoff_launcher.bevygap import games_without_namespace
from tipoff_launcher.context_endpoint import ContextEndpoint, bind, serve_contexts
from tipoff_launcher.place import find_place, where_to_listen
from tipoff_launcher.process import ProcessBackend
from tipoff_launcher.record import Records
from tipoff_launcher.recovery import Recovery
from tipoff_launcher.servers import Servers
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client import wire
from tipoff_orchestrator_client.base import Deployment, OrchestratorError, OrchestratorUnavailable
from tipoff_shared.errors import ConfigError, Malformed, TipoffError, Unavailable
from tipoff_shared.games import Games
from tipoff_shared.nats_connection import Bus, connect
from tipoff_shared.secret import Secret
from tipoff_shared.settings import NatsSettings
from tipoff_shared.stores import stores
from tipoff_shared.supervise import BoundedHandlers, Tasks

log = logging.getLogger(__name__)

_QUEUE = "launchers"
_LOOK_AT_LOGS = 5.0
_DRAIN = 1.0

_Operation = Callable[[bytes], Awaitable[bytes]]


class Launcher:
    """A launcher that answers. `failed` is set when it can no longer do its work (NATS is gone for good, or there
    is a bug) and the process should end; the next launcher takes over."""

    def __init__(self, settings: Settings, bus: Bus, servers: Servers, failed: asyncio.Event) -> None:
        self.settings = settings
        self.bus = bus
        self.servers = servers
        self.failed = failed
        self._handlers = BoundedHandlers("launcher request", settings.max_requests)
        self._subscriptions: list[Subscription] = []
        self._operations: dict[str, _Operation] = {
            "deploy": self._deploy,
            "get": self._get,
            "stop": self._stop,
            "list": self._list,
        }
        if settings.demo:
            self._operations["kill"] = self._kill

    async def refuse_to_be_second(self) -> None:
        """Raises `ConfigError` when a launcher of this name answers already: each would start what the other has."""
        subject = self._subject("list")
        try:
            await self.bus.request(subject, b"{}", timeout=2)
        except Unavailable as exc:
            if isinstance(exc.__cause__, nats.errors.NoRespondersError):
                return
            if not self.bus.connected:
                raise
        raise ConfigError(
            f"a launcher of host {self.settings.host!r} is running already in namespace "
            f"{self.bus.settings.namespace!r}; stop it, or give this one another TIPOFF_LAUNCHER_HOST"
        )

    async def serve(self) -> None:
        for name, operation in self._operations.items():
            self._subscriptions.append(
                await self.bus.serve(
                    self._subject(name),
                    functools.partial(self._answer, operation),
                    queue=_QUEUE,
                    handlers=self._handlers,
                    busy=self._busy,
                )
            )
        await self.bus.flush()

    async def quiet(self) -> None:
        """Take no more requests; wait for those in hand."""
        for subscription in self._subscriptions:
            try:
                await subscription.unsubscribe()
            except nats.errors.Error as exc:
                log.debug("unsubscribing: %s", exc)
        await self._handlers.drain(_DRAIN)

    def _subject(self, operation: str) -> str:
        return self.bus.subjects.launcher(self.settings.host, operation)

    async def _answer(self, operation: _Operation, msg: Msg) -> None:
        try:
            answer = await operation(msg.data)
        except Malformed as exc:
            answer = wire.encode_error(OrchestratorError(str(exc)))
        except OrchestratorError as exc:
            answer = wire.encode_error(exc)
        except Exception:
            log.exception("a request on %s failed", msg.subject)
            answer = wire.encode_error(
                OrchestratorError("the launcher failed; its log says why", may_have_started=True)
            )
        await self._reply(msg, answer)

    async def _busy(self, msg: Msg) -> None:
        error = OrchestratorUnavailable("the launcher is busy", retryable=True, retry_after=1)
        await self._reply(msg, wire.encode_error(error))

    async def _reply(self, msg: Msg, answer: bytes) -> None:
        if not msg.reply:
            return
        try:
            await self.bus.publish(msg.reply, answer)
        except Unavailable as exc:
            log.warning("an answer is lost: %s", exc)

    async def _deploy(self, data: bytes) -> bytes:
        return wire.encode_deployment(await self.servers.deploy(wire.decode_deploy(data)))

    async def _get(self, data: bytes) -> bytes:
        return wire.encode_deployment(self.servers.get(wire.decode_one(data)))

    async def _stop(self, data: bytes) -> bytes:
        await self.servers.stop(wire.decode_one(data))
        return wire.encode_done()

    async def _kill(self, data: bytes) -> bytes:
        await self.servers.kill(wire.decode_one(data))
        return wire.encode_done()

    async def _list(self, data: bytes) -> bytes:
        return wire.encode_deployments(self.servers.living())


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
        _only_one(settings.state_dir),
        closing(bind(where_to_listen(settings, games), settings.state_dir)) as sock,
    ):
        records = Records(settings.state_dir)
        server_tokens = ServerTokens.load(settings.state_dir)
        place = await find_place(settings, sock.getsockname())
        failed = asyncio.Event()
        servers_nats = _nats_of_servers(settings, nats_settings)
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
                tell=_publisher(bus, settings.host),
            )
            recovery = Recovery(
                records,
                nats_settings.namespace,
                games,
                backend,
                servers,
                tasks,
                has_lease=_has_lease(bus),
                connected_since=lambda: bus.connected_since,
                matchmaker_since=_Matchmakers(bus).since,
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
            _warn_of_loopback(nats_settings)
        from tipoff_launcher.docker.backend import docker_backend  # aiohttp takes 200 ms to import

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


def _warn_of_loopback(nats_settings: NatsSettings) -> None:
    for server in nats_settings.servers:
        if (host := urlsplit(server).hostname) in ("127.0.0.1", "localhost", "::1"):
            log.warning(
                "NATS_HOST=%s is this host, which is another one for a container: servers will not find NATS. Set "
                "TIPOFF_LAUNCHER_DOCKER_NATS_HOST, to host.docker.internal:4222 for example",
                host,
            )


def _nats_of_servers(settings: Settings, ours: NatsSettings) -> NatsSettings:
    """How servers get into NATS: as a user of their own where there is one. Raises `ConfigError`."""
    user, file = settings.server_nats_user, settings.server_nats_password_file
    if not user:
        return ours
    try:
        password = Path(file).read_text().strip() if file else ""
    except OSError as exc:
        raise ConfigError(f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file}: {exc.strerror}") from exc
    except UnicodeError:
        raise ConfigError(f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file}: not a line of text") from None
    if file and not password:
        raise ConfigError(
            f"TIPOFF_LAUNCHER_SERVER_NATS_PASSWORD_FILE={file} is empty; no server would get in"
        )
    return dataclasses.replace(ours, user=user, password=Secret(password), inbox_prefix=f"_INBOX_{user}")


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state directory: two launchers would adopt each other's servers. Raises `ConfigError`."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(state_dir / "launcher.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise ConfigError(
            f"the launcher's state directory {state_dir} cannot be used: {exc.strerror}; choose another one "
            "(TIPOFF_LAUNCHER_STATE_DIR)"
        ) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"the state directory {state_dir} is in use by another launcher; stop it, or choose another one "
                "(TIPOFF_LAUNCHER_STATE_DIR)"
            ) from None
        yield
    finally:
        os.close(descriptor)


def _has_lease(bus: Bus) -> Callable[[str], Awaitable[bool | None]]:
    gameservers = stores(bus).gameservers

    async def has_lease(deployment_id: str) -> bool | None:
        try:
            return await gameservers.get(deployment_id) is not None
        except TipoffError as exc:
            log.warning("whether %s has a lease is not known: %s", deployment_id, exc)
            return None

    return has_lease


class _Matchmakers:
    """Since when one of them answers, as far as one knows who asks now and then."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._since: float | None = None

    async def since(self) -> float | None:
        """In monotonic seconds; None while none answers."""
        try:
            await self._bus.request(self._bus.subjects.ping_matchmaker, b"", timeout=1)
        except Unavailable:
            self._since = None
        else:
            self._since = self._since or time.monotonic()
        return self._since


def _publisher(bus: Bus, host: str) -> Callable[[Deployment], Awaitable[None]]:
    subject = bus.subjects.launcher(host, "events")

    async def tell(deployment: Deployment) -> None:
        try:
            await bus.publish(subject, wire.encode_deployment(deployment))
        except Unavailable as exc:
            log.warning("nobody hears that %s is %s: %s", deployment.deployment_id, deployment.state, exc)

    return tell


async def _keep_logs_small(servers: Servers) -> None:
    while True:
        await asyncio.sleep(_LOOK_AT_LOGS)
        servers.bound_logs()


async def _notice_the_end_of(bus: Bus, failed: asyncio.Event) -> None:
    await bus.closed.wait()
    log.error("the connection to NATS is gone for good: %s", bus.last_error or "no reason given")
    failed.set()
