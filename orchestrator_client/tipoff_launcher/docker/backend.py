"""The back end `docker`: a server is a container, named by its id.

A start: image, container (made, but not running), its files, written down, started. Whatever goes wrong on the way
leaves no container; what a crash leaves, the next launcher or the watch finds by its labels.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tipoff_launcher.backend import PortInUse, PortWish, StartOrder, Surroundings
from tipoff_launcher.docker import container
from tipoff_launcher.docker.engine import Engine, Refused, open_engine
from tipoff_launcher.docker.images import Images, is_allowed
from tipoff_launcher.docker.inside import DIRECTORY, inside
from tipoff_launcher.docker.server import DockerServer
from tipoff_launcher.docker.watch import Watch
from tipoff_launcher.ports import port_is_free
from tipoff_launcher.record import Record, Records
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import (
    NotConfigured,
    OrchestratorError,
    OrchestratorUnavailable,
    Port,
)
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.games import DockerSpec, Game, Games
from tipoff_shared.supervise import Tasks

log = logging.getLogger(__name__)

_PASSED_ON = ("TZ", "TIPOFF_LOG", "TIPOFF_LOG_LEVEL")
_AT_ONCE = 8
_REMOVE_DEADLINE = 20.0
_OWN_SDK = {"udp": PortWish("udp"), "websocket": PortWish("tcp")}
_PORT_TAKEN = ("port is already allocated", "address already in use", "ports are not available")
_CANNOT_RUN = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "exec format error",
)
_WITHOUT_NAMES = {"", "bridge", "host", "none"}


class DockerBackend:
    """Use `docker_backend`."""

    name = "docker"

    def __init__(
        self,
        engine: Engine,
        images: Images,
        tasks: Tasks,
        settings: Settings,
        namespace: str,
        records: Records,
    ) -> None:
        self._engine = engine
        self._images = images
        self._tasks = tasks
        self._settings = settings
        self._namespace = namespace
        self._records = records
        self._marks = container.marks(namespace, settings.host, settings.docker_owned_by)
        self._servers: dict[str, DockerServer] = {}
        self._busy: set[str] = set()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._recovered = False
        self.watch = Watch(engine, self._marks, lambda: self._servers, self._is_nobodys)

    # What a game needs.

    def check(self, game: Game) -> None:
        where = f"game {game.name!r} version {game.version!r} in games.toml"
        spec = _spec(game)
        if not is_allowed(spec.image, self._settings.docker_images):
            raise NotConfigured(
                f"{where}: TIPOFF_LAUNCHER_DOCKER_IMAGES does not allow its image {spec.image!r}"
            )
        for name, wanted, most in (
            ("cpus", spec.cpus, self._settings.docker_max_cpus),
            ("memory", spec.memory, self._settings.docker_max_memory),
        ):
            if most and wanted > most:
                raise NotConfigured(
                    f"{where}: {name} = {wanted:g} is more than TIPOFF_LAUNCHER_DOCKER_MAX_{name.upper()} = {most:g}"
                )
        if self._on_host and any(port.internal for port in spec.ports.values()):
            raise NotConfigured(f"{where}: ports with `internal` cannot be had on the network `host`")

    def ports(self, game: Game) -> Mapping[str, PortWish]:
        wanted = _spec(game).ports
        return {name: PortWish(port.protocol, port.internal) for name, port in wanted.items()} or _OWN_SDK

    def port_is_free(self, port: int, protocol: str) -> bool:
        """As far as it shows from here: where the launcher is a container itself, only the engine knows."""
        return port_is_free(self._settings.listen_on, elsewhere=True)(port, protocol)

    def surroundings(self, game: Game) -> Surroundings:
        everywhere = "0.0.0.0"  # noqa: S104  # of the container, which has an address of its own
        return Surroundings(
            _spec(game).env, _PASSED_ON, self._settings.listen_on if self._on_host else everywhere
        )

    def proxy(self, deployment_id: str, ports: Mapping[str, Port]) -> str:
        port = ports.get("websocket")
        if port is None:
            return ""
        if self._settings.docker_network in _WITHOUT_NAMES:  # those have no names: by the published port
            return f"{self._settings.reached_by_proxy}:{port.external}"
        return f"{container.container_name(self._namespace, deployment_id)}:{port.internal}"

    def _is_nobodys(self, container_id: str) -> bool:
        return self._recovered and container_id not in self._servers and container_id not in self._busy

    @property
    def _on_host(self) -> bool:
        return self._settings.docker_network == "host"

    # Starting.

    async def start(self, order: StartOrder, write_down: Callable[[str], None]) -> DockerServer:
        spec = _spec(order.game)
        await self._images.have(spec.image, order.progress)
        bevygap = order.game.bevygap  # reads no secret from a file, and knows one NATS server
        nats_host = self._settings.docker_nats_host
        variables, files = inside(
            dict(order.environment),
            own=spec.env,
            secrets="environment" if bevygap else spec.secrets,
            nats_host=nats_host.split(",")[0] if bevygap else nats_host,
            read=lambda path: Path(path).read_bytes(),
        )
        config = container.configuration(
            spec,
            order.record,
            variables,
            marks=self._marks,
            network=self._settings.docker_network,
            publish_on=self._settings.listen_on,
            init=self._settings.docker_init,
            max_log_bytes=self._settings.max_log_bytes,
            files=bool(files),
        )
        name = container.container_name(self._namespace, order.deployment_id)
        async with self._room:
            container_id = await self._create(name, order, config)
            self._busy.add(container_id)
            try:
                if files:
                    await self._engine.put_files(container_id, DIRECTORY, files)
                write_down(container_id)
                await self._engine.start(container_id)
                return self._known(container_id, order.log)
            except BaseException as exc:
                await self._remove(container_id)
                if isinstance(exc, Refused):
                    raise _why_not(exc, spec) from exc
                raise
            finally:
                self._busy.discard(container_id)

    async def _create(self, name: str, order: StartOrder, config: Mapping[str, object]) -> str:
        try:
            return await self._make(name, config)
        except Refused as exc:
            if exc.status != 409:
                raise _why_not(exc, _spec(order.game)) from exc
        # What an attempt of ours has left whose end was not heard; nobody knows it, or we would not be here.
        found = await self._engine.look(name)
        if found is not None:
            ours = all(found.labels.get(label) == value for label, value in self._marks.items())
            if not ours or container.deployment_of(found.labels) != order.deployment_id:
                raise OrchestratorError(f"a container {name} exists that is not this launcher's; remove it")
            await self._engine.remove(found.id)
        try:
            return await self._make(name, config)
        except Refused as exc:
            raise _why_not(exc, _spec(order.game)) from exc

    async def _make(self, name: str, config: Mapping[str, object]) -> str:
        """The engine makes a container also when nobody waits for it any more: then it is removed."""
        made: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def make() -> None:
            try:
                container_id = await self._engine.create(name, config)
            except BaseException as exc:
                made.set_exception(exc if isinstance(exc, OrchestratorError) else _abandoned())
                made.exception()
                if not isinstance(exc, OrchestratorError):
                    raise
            else:
                made.set_result(container_id)

        self._tasks.start(make(), f"make {name}")
        try:
            return await asyncio.shield(made)
        except asyncio.CancelledError:
            await asyncio.wait([made], timeout=_REMOVE_DEADLINE)
            if made.done() and made.exception() is None:
                await self._remove(made.result())
            raise

    async def _remove(self, container_id: str) -> None:
        """Also while being cancelled; what the engine does not do now, the watch does later."""
        removing = self._tasks.start(self._removed(container_id), f"remove {container_id[:12]}")
        try:
            await asyncio.shield(removing)
        except asyncio.CancelledError:
            await asyncio.wait([removing])
            raise

    async def _removed(self, container_id: str) -> None:
        try:
            async with asyncio.timeout(_REMOVE_DEADLINE):
                await self._engine.remove(container_id)
        except (OrchestratorError, TimeoutError) as exc:
            log.warning("container %s is left for later: %s", container_id[:12], exc or "the engine is slow")

    def _known(self, container_id: str, log_file: Path) -> DockerServer:
        server = self._servers[container_id] = DockerServer(
            self._engine,
            container_id,
            log_file,
            self._settings.max_log_bytes,
            forget=lambda: self._servers.pop(container_id, None),
        )
        return server

    # What an earlier launcher has left.

    async def find(self, native_id: str, deployment_id: str) -> DockerServer | None:
        found = await self._engine.look(native_id)
        if (
            found is None
            or container.deployment_of(found.labels) != deployment_id
            or found.status == "created"
        ):
            return None
        return self._known(found.id, self._records.log(deployment_id))

    async def clean_up(self, native_id: str, deployment_id: str) -> None:
        found = await self._engine.look(native_id)
        if found is not None and container.deployment_of(found.labels) == deployment_id:
            await self._remove_dead(found.id)

    async def unrecorded(self, known: Collection[str]) -> list[Record]:
        records: list[Record] = []
        for container_id, state in (await self._engine.list(self._marks)).items():
            if container.deployment_of(state.labels) in known:
                continue
            record = container.record_of(container_id, state.labels) if state.running else None
            if record is not None:
                records.append(record)
            else:
                log.info("container %s is %s and nobody's; it is removed", container_id[:12], state.status)
                await self._remove_dead(container_id)
        self._recovered = True
        return records

    async def _remove_dead(self, container_id: str) -> None:
        """One that the engine fails to remove must not keep a launcher from starting."""
        try:
            await self._engine.remove(container_id)
        except Refused as exc:
            log.warning("container %s is left for later: %s", container_id[:12], exc)


@asynccontextmanager
async def docker_backend(
    settings: Settings,
    games: Games,
    namespace: str,
    records: Records,
    *,
    on_failure: Callable[[BaseException], None] | None = None,
) -> AsyncIterator[DockerBackend]:
    """The back end for the time of the block; `on_failure` hears of a bug in its own tasks. Leaving it stops no server.

    Raises `Unavailable` when no engine answers, `ConfigError` when it has not what the settings name.
    """
    async with open_engine(settings.docker_host) as engine, Tasks("docker", on_failure) as tasks:
        await _wait_for(engine, settings.docker_wait)
        network = settings.docker_network
        if network and not await engine.has_network(network):
            raise ConfigError(
                f"TIPOFF_LAUNCHER_DOCKER_NETWORK={network}: the engine has no such network; "
                f"`docker network create {network}` makes it"
            )
        images = Images(
            engine,
            tasks,
            policy=settings.docker_pull,
            config=settings.docker_config,
            timeout=settings.docker_pull_timeout,
        )
        backend = DockerBackend(engine, images, tasks, settings, namespace, records)
        tasks.start(backend.watch.run(), "watch")
        if settings.docker_pull_at_start and settings.docker_pull != "never":
            ours = [
                game.docker.image for game in games.all() if game.orchestrator == "launcher" and game.docker
            ]
            allowed = [image for image in ours if is_allowed(image, settings.docker_images)]
            tasks.start(images.have_all(dict.fromkeys(allowed)), "images")
        yield backend


async def _wait_for(engine: Engine, patience: float) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + patience
    while True:
        try:
            log.info("Docker engine %s at %s", await engine.version(), engine.host)
            return
        except OrchestratorError as exc:
            if loop.time() >= until:
                raise Unavailable(
                    f"{exc}; is it running, and may this user open it? TIPOFF_LAUNCHER_DOCKER_HOST says where it is"
                ) from exc
            log.warning("%s; waiting for it", exc)
        await asyncio.sleep(min(1.0, max(0.0, until - loop.time())))


def _spec(game: Game) -> DockerSpec:
    if game.docker is None:
        raise NotConfigured(
            f"game {game.name!r} version {game.version!r} in games.toml has no [game.docker] with its image"
        )
    return game.docker


def _abandoned() -> OrchestratorError:
    return OrchestratorUnavailable("the launcher is ending", retryable=True)


def _why_not(exc: Refused, spec: DockerSpec) -> OrchestratorError:
    """What an engine that would not create or start it means."""
    words = str(exc).lower()
    if any(text in words for text in _PORT_TAKEN):
        return PortInUse(str(exc), retryable=True)
    if exc.status == 404 and "no such image" in words:
        return OrchestratorUnavailable(f"image {spec.image!r} is gone again: {exc}", retryable=True)
    if "runtime" in words and any(text in words for text in _CANNOT_RUN):
        return NotConfigured(f"image {spec.image!r} cannot run its command: {exc}")
    if exc.status < 500 and exc.status != 409:
        return NotConfigured(str(exc))
    return OrchestratorUnavailable(str(exc), retryable=True)
