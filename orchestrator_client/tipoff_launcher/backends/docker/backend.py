"""Runs each server as a container named after its deployment.

A start fetches the image, creates the container, puts its files in, records it and starts it. A start that fails
leaves no container; what a crash leaves is found by its labels, by the next launcher or by ContainerWatch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tipoff_launcher.backends.docker import container_config
from tipoff_launcher.backends.docker.container_log import ContainerLogs
from tipoff_launcher.backends.docker.engine import Engine, EngineError, open_engine, start_error
from tipoff_launcher.backends.docker.images import Images, is_allowed
from tipoff_launcher.backends.docker.server import DockerServer, KnownContainers
from tipoff_launcher.backends.docker.watch import ContainerWatch
from tipoff_launcher.backends.interface import BackendEnvironment, PortSpec, StartRequest
from tipoff_launcher.backends.ports import SDK_PORTS, port_is_free
from tipoff_launcher.records import Record
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import NotConfigured, OrchestratorError, OrchestratorUnavailable, Port
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.games import DockerSpec, Game, Games
from tipoff_shared.primitives.single_flight import SingleFlight
from tipoff_shared.primitives.tasks import Tasks
from tipoff_shared.primitives.text import describe

log = logging.getLogger(__name__)

_REMOVE_DEADLINE = 20.0
"""Seconds to remove a container while its start is being cancelled."""

_INHERITED = ("TZ", "TIPOFF_LOG", "TIPOFF_LOG_LEVEL")
_STARTS_AT_ONCE = 8
_NETWORKS_WITHOUT_NAMES = {"", "bridge", "host", "none"}
"""The engine's networks in which containers cannot reach each other by name."""


@asynccontextmanager
async def docker_backend(
    settings: Settings,
    games: Games,
    namespace: str,
    foreign: Collection[str] = (),
    *,
    on_failure: Callable[[BaseException], None] | None = None,
) -> AsyncIterator[DockerBackend]:
    """The back end for the time of the block; leaving it stops no server. Containers whose record has an owner in
    `foreign` are never touched. `on_failure` is called when one of its
    background tasks fails.

    Waits for the engine. Raises `Unavailable` when it does not answer, `ConfigError` when it lacks what the settings
    name.
    """
    owner_labels = container_config.owner_labels(namespace, settings.host, settings.docker_owned_by)
    known = KnownContainers()
    async with (
        open_engine(settings.docker_host) as engine,
        Images(engine, settings) as images,
        Containers(engine, owner_labels) as containers,
        Tasks("docker", on_failure) as tasks,
    ):
        await _wait_for(engine, settings.docker_wait)
        network = settings.docker_network
        if network and not await engine.has_network(network):
            raise ConfigError(
                f"TIPOFF_LAUNCHER_DOCKER_NETWORK={network}: the engine has no such network; "
                f"`docker network create {network}` makes it"
            )
        tasks.start(ContainerWatch(engine, owner_labels, known, foreign).run(), "watch")
        if settings.docker_pull_at_start and settings.docker_pull != "never":
            tasks.start(images.prefetch(_allowed_images(games, settings)), "images")
        yield DockerBackend(engine, images, containers, known, settings, namespace, owner_labels, foreign)


def _allowed_images(games: Games, settings: Settings) -> Iterable[str]:
    images = [game.docker.image for game in games.all() if game.orchestrator == "launcher" and game.docker]
    return dict.fromkeys(image for image in images if is_allowed(image, settings.docker_images))


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


class Containers:
    """`owner_labels` tell this launcher's containers from others.

    Use it in `async with`; leaving cancels creations and removals that still run.
    """

    def __init__(self, engine: Engine, owner_labels: Mapping[str, str]) -> None:
        self._engine = engine
        self._owner_labels = owner_labels
        self._creations = SingleFlight[str, str]("create")
        self._removals = SingleFlight[str, None]("remove")

    async def __aenter__(self) -> Containers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._creations.close()
        await self._removals.close()

    async def create(self, name: str, deployment_id: str, image: str, config: Mapping[str, object]) -> str:
        """Create a container and return its id. Raises `OrchestratorError`; cancelling leaves no container."""
        try:
            return await self._create(name, config)
        except EngineError as exc:
            if exc.status != 409:
                raise start_error(exc, image) from exc
        # An earlier attempt, whose end this launcher did not see, has left a container of this name.
        found = await self._engine.inspect(name)
        if found is not None:
            ours = all(found.labels.get(label) == value for label, value in self._owner_labels.items())
            if not ours or container_config.deployment_of(found.labels) != deployment_id:
                raise OrchestratorError(f"a container {name} exists that is not this launcher's; remove it")
            await self._engine.remove(found.id)
        try:
            return await self._create(name, config)
        except EngineError as exc:
            raise start_error(exc, image) from exc

    async def _create(self, name: str, config: Mapping[str, object]) -> str:
        """The engine completes a creation whose caller has gone, so a cancelled one is awaited and removed."""
        creation = self._creations.start(name, lambda: self._engine.create(name, config))
        try:
            await asyncio.wait((creation,))
        except asyncio.CancelledError:
            await asyncio.wait((creation,), timeout=_REMOVE_DEADLINE)
            if creation.done() and not creation.cancelled() and creation.exception() is None:
                await self.remove(creation.result())
            raise
        if creation.cancelled():
            raise OrchestratorUnavailable("the launcher is ending", retryable=True)
        return creation.result()

    async def remove(self, container_id: str) -> None:
        """Remove a container, also while being cancelled. Raises no error: ContainerWatch removes what is left."""
        removal = self._removals.start(container_id, lambda: self._remove(container_id))
        try:
            await asyncio.wait((removal,))
        except asyncio.CancelledError:
            await asyncio.wait((removal,))
            raise

    async def _remove(self, container_id: str) -> None:
        try:
            async with asyncio.timeout(_REMOVE_DEADLINE):
                await self._engine.remove(container_id)
        except (OrchestratorError, TimeoutError) as exc:
            log.warning("container %s is not removed yet: %s", container_id[:12], describe(exc))

    async def remove_dead(self, container_id: str) -> None:
        """Remove a container that has ended; only logs an `EngineError`, so that the launcher can start."""
        try:
            await self._engine.remove(container_id)
        except EngineError as exc:
            log.warning("container %s is not removed yet: %s", container_id[:12], exc)


class DockerBackend:
    """The `Backend` for containers; use `docker_backend`."""

    name = "docker"

    def __init__(
        self,
        engine: Engine,
        images: Images,
        containers: Containers,
        known: KnownContainers,
        settings: Settings,
        namespace: str,
        owner_labels: Mapping[str, str],
        foreign: Collection[str] = (),
    ) -> None:
        self._engine = engine
        self._foreign = foreign
        self._images = images
        self._containers = containers
        self._known = known
        self._settings = settings
        self._namespace = namespace
        self._owner_labels = owner_labels
        self._logs = ContainerLogs(engine, max_bytes=settings.max_log_bytes, rate=settings.max_log_rate)
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)

    # What a game needs.

    def check(self, game: Game) -> None:
        """Raises `NotConfigured` for a missing or disallowed image, for too many CPUs or too much memory, and for ports
        that the network cannot map."""
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
        if self._on_host_network and any(port.internal for port in spec.ports.values()):
            raise NotConfigured(f"{where}: ports with `internal` cannot be used on the network `host`")

    def ports(self, game: Game, *, proxied: bool = False) -> Mapping[str, PortSpec]:
        """The ports of `[game.docker]`, or those of the SDK where it names none."""
        wanted = _spec(game).ports
        return {name: PortSpec(port.protocol, port.internal) for name, port in wanted.items()} or SDK_PORTS

    def port_is_free(self, port: int, protocol: str) -> bool:
        """Whether the port can be bound on `listen_on` now. Raises `OSError`."""
        # Where the launcher itself is a container, only the engine can tell.
        return port_is_free(self._settings.listen_on, ignore_foreign=True)(port, protocol)

    def environment(self, game: Game) -> BackendEnvironment:
        """The variables of `[game.docker]`, and the address that servers in this network bind."""
        every_interface = "0.0.0.0"  # noqa: S104  # of the container, which has its own address
        return BackendEnvironment(
            _spec(game).env,
            _INHERITED,
            self._settings.listen_on if self._on_host_network else every_interface,
        )

    def proxy_address(self, deployment_id: str, ports: Mapping[str, Port]) -> str:
        """The container's name and the WebSocket port inside it, or the published port in networks without names; ""
        without a WebSocket port."""
        port = ports.get("websocket")
        if port is None:
            return ""
        if self._settings.docker_network in _NETWORKS_WITHOUT_NAMES:  # only the published port can be reached
            return f"{self._settings.reached_by_proxy}:{port.external}"
        return f"{container_config.container_name(self._namespace, deployment_id)}:{port.internal}"

    @property
    def _on_host_network(self) -> bool:
        return self._settings.docker_network == "host"

    # Starting.

    async def start(self, request: StartRequest, save_native_id: Callable[[str], None]) -> DockerServer:
        """Fetch the image if it is missing, then create and start the container; a failed start removes it."""
        spec = _spec(request.game)
        await self._images.ensure(spec.image, request.progress)
        bevygap = request.game.bevygap  # its plugin reads no secret from a file and accepts one NATS server
        nats_host = self._settings.docker_nats_host
        variables, files = container_config.container_environment(
            dict(request.environment),
            own=spec.env,
            secrets="environment" if bevygap else spec.secrets,
            nats_host=nats_host.split(",")[0] if bevygap else nats_host,
            read=lambda path: Path(path).read_bytes(),
        )
        config = container_config.configuration(
            spec,
            request.record,
            variables,
            owner_labels=self._owner_labels,
            network=self._settings.docker_network,
            publish_on=self._settings.listen_on,
            init=self._settings.docker_init,
            max_log_bytes=self._settings.max_log_bytes,
            files=bool(files),
        )
        name = container_config.container_name(self._namespace, request.deployment_id)
        async with self._starts:
            container_id = await self._containers.create(name, request.deployment_id, spec.image, config)
            with self._known.creating(container_id):
                try:
                    if files:
                        await self._engine.put_files(container_id, container_config.FILES_DIRECTORY, files)
                    save_native_id(container_id)
                    await self._engine.start(container_id)
                    return self._add(container_id, request.log)
                except BaseException as exc:
                    await self._containers.remove(container_id)
                    if isinstance(exc, EngineError):
                        raise start_error(exc, spec.image) from exc
                    raise

    def _add(self, container_id: str, log_file: Path) -> DockerServer:
        server = DockerServer(self._engine, container_id, log_file, self._logs, self._known)
        self._known.add(server)
        return server

    # What an earlier launcher has left.

    async def find(self, native_id: str, deployment_id: str, log_file: Path) -> DockerServer | None:
        """The container, unless it never started or belongs to another deployment. Raises `OrchestratorError`."""
        found = await self._engine.inspect(native_id)
        if (
            found is None
            or container_config.deployment_of(found.labels) != deployment_id
            or found.status == "created"
        ):
            return None
        return self._add(found.id, log_file)

    async def clean_up(self, native_id: str, deployment_id: str) -> None:
        """Remove the container if it still belongs to the deployment."""
        found = await self._engine.inspect(native_id)
        if found is not None and container_config.deployment_of(found.labels) == deployment_id:
            await self._containers.remove_dead(found.id)

    async def find_unrecorded(self, known: Collection[str]) -> list[Record]:
        """Read the records from the containers' labels, remove containers without one, and let the search for orphans
        begin."""
        records: list[Record] = []
        for container_id, state in (await self._engine.list(self._owner_labels)).items():
            if container_config.deployment_of(state.labels) in known:
                continue
            if container_config.belongs_to(state.labels, self._foreign):
                continue
            record = container_config.record_of(container_id, state.labels) if state.running else None
            if record is not None:
                records.append(record)
            else:
                log.info("container %s is %s and has no record: removing it", container_id[:12], state.status)
                await self._containers.remove_dead(container_id)
        self._known.recovered = True
        return records


def _spec(game: Game) -> DockerSpec:
    if game.docker is None:
        raise NotConfigured(
            f"game {game.name!r} version {game.version!r} in games.toml has no [game.docker] with its image"
        )
    return game.docker
