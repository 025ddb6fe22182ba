"""Opens the back end `docker`: the engine, waited for, and what the settings name of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tipoff_launcher.backends.docker.backend import DockerBackend
from tipoff_launcher.backends.docker.engine import Engine, open_engine
from tipoff_launcher.backends.docker.images import Images, is_allowed
from tipoff_launcher.records import Records
from tipoff_launcher.settings import Settings
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_shared.errors import ConfigError, Unavailable
from tipoff_shared.games import Games
from tipoff_shared.primitives.tasks import Tasks

log = logging.getLogger(__name__)


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
