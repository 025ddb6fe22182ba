"""The back end `docker`: a server is a container, named by its id.

A start: image, container (made, but not running), its files, written down, started. Whatever goes wrong on the way
leaves no container; what a crash leaves, the next launcher or the watch finds by its labels.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from tipoff_launcher.backends.docker import container
from tipoff_launcher.backends.docker.containers import Containers
from tipoff_launcher.backends.docker.engine import Engine, Refused
from tipoff_launcher.backends.docker.images import Images, is_allowed
from tipoff_launcher.backends.docker.inside import DIRECTORY, inside
from tipoff_launcher.backends.docker.refusals import why_not
from tipoff_launcher.backends.docker.server import DockerServer
from tipoff_launcher.backends.docker.watch import Watch
from tipoff_launcher.backends.interface import PortWish, StartOrder, Surroundings
from tipoff_launcher.ports import port_is_free
from tipoff_launcher.records import Record, Records
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import NotConfigured, Port
from tipoff_shared.games import DockerSpec, Game
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)

_PASSED_ON = ("TZ", "TIPOFF_LOG", "TIPOFF_LOG_LEVEL")
_AT_ONCE = 8
_OWN_SDK = {"udp": PortWish("udp"), "websocket": PortWish("tcp")}
_WITHOUT_NAMES = {"", "bridge", "host", "none"}


class DockerBackend:
    """Use `docker_backend` (open.py)."""

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
        self._settings = settings
        self._namespace = namespace
        self._records = records
        self._marks = container.marks(namespace, settings.host, settings.docker_owned_by)
        self._containers = Containers(engine, tasks, self._marks)
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
            container_id = await self._containers.make(name, order.deployment_id, spec, config)
            self._busy.add(container_id)
            try:
                if files:
                    await self._engine.put_files(container_id, DIRECTORY, files)
                write_down(container_id)
                await self._engine.start(container_id)
                return self._known(container_id, order.log)
            except BaseException as exc:
                await self._containers.remove(container_id)
                if isinstance(exc, Refused):
                    raise why_not(exc, spec) from exc
                raise
            finally:
                self._busy.discard(container_id)

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
            await self._containers.remove_dead(found.id)

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
                await self._containers.remove_dead(container_id)
        self._recovered = True
        return records


def _spec(game: Game) -> DockerSpec:
    if game.docker is None:
        raise NotConfigured(
            f"game {game.name!r} version {game.version!r} in games.toml has no [game.docker] with its image"
        )
    return game.docker
