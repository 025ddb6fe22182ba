"""The Docker engine, as far as a launcher needs it: a thin layer over aiodocker that speaks our errors.

    EngineUnavailable   nobody answers, or not in time; retryable
    Refused             the engine says no: `status` is HTTP's (404 no such, 409 in conflict, 500 it failed)

Every call but the streams has a deadline. Cancelling any of them is safe; what the engine has been told it may do
all the same.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiodocker
import aiohttp

from tipoff_orchestrator_client.base import OrchestratorError, OrchestratorUnavailable
from tipoff_shared.errors import ConfigError

log = logging.getLogger(__name__)

DEFAULT_HOST = "unix:///var/run/docker.sock"

_CONNECT = 5.0
_CALL = 60.0
"""Seconds: a busy engine takes ten for a start."""
_SHORT = 15.0
_NOBODY = 900
"""aiodocker's own "status" for an engine that cannot be reached."""
_OWNER = 64198
"""Whom the files we put into a container belong to: nobody, so that no server can change them."""


class EngineUnavailable(OrchestratorUnavailable):
    """No answer from the engine."""


class Refused(OrchestratorError):
    """The engine's own words are in the message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message, retryable=status >= 500)
        self.status = status


@dataclass(frozen=True, slots=True)
class ContainerState:
    """Of one container. `status`: created, running, paused, exited, dead, ..."""

    id: str
    status: str
    running: bool
    exit_code: int
    out_of_memory: bool
    error: str
    labels: Mapping[str, str]
    stop_signal: str


class Engine:
    """Use `open_engine`."""

    def __init__(self, docker: Any, host: str) -> None:
        self._docker = docker  # aiodocker is typed in part only
        self.host = host

    async def version(self) -> str:
        """For logs; raises `EngineUnavailable` where no engine answers."""
        with self._errors():
            async with asyncio.timeout(_SHORT):
                found = await self._docker.version()
        return f"{found.get('Version', '?')} (API {found.get('ApiVersion', '?')})"

    async def has_network(self, name: str) -> bool:
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    await (await self._docker.networks.get(name)).show()
        except Refused as exc:
            if exc.status == 404:
                return False
            raise
        return True

    # Images.

    async def has_image(self, image: str) -> bool:
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    await self._docker.images.inspect(image)
        except Refused as exc:
            if exc.status == 404:
                return False
            raise
        return True

    async def pull(self, image: str, auth: Mapping[str, str] | None) -> AsyncIterator[dict[str, Any]]:
        """Fetch it; yields what the engine says on the way. No deadline."""
        with self._errors():
            async for line in self._docker.images.pull(image, auth=auth, stream=True):
                yield line

    # Containers.

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """The id of a new container that does not run yet."""
        with self._errors():
            async with asyncio.timeout(_CALL):
                container = await self._docker.containers.create(config, name=name)
        return str(container.id)

    async def put_files(self, id: str, directory: str, files: Mapping[str, bytes]) -> None:
        """Into `directory`, on a volume of a container that does not run yet; for everybody in it to read."""
        with self._errors():
            async with asyncio.timeout(_CALL):
                await self._docker.containers.container(id).put_archive(directory, _archive(files))

    async def start(self, id: str) -> None:
        with self._errors():
            async with asyncio.timeout(_CALL):
                await self._docker.containers.container(id).start()

    async def signal(self, id: str, signal: str) -> None:
        """To its first process; one that has ended is no error."""
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    await self._docker.containers.container(id).kill(signal=signal)
        except Refused as exc:
            if exc.status not in (404, 409):  # gone; does not run
                raise

    async def remove(self, id_or_name: str) -> None:
        """It, running or not, and its volume; one that is gone is no error."""
        try:
            with self._errors():
                async with asyncio.timeout(_CALL):
                    await self._docker.containers.container(id_or_name).delete(force=True, v=True)
        except Refused as exc:
            if exc.status not in (404, 409):  # gone; somebody else is removing it
                raise

    async def look(self, id_or_name: str) -> ContainerState | None:
        """None when there is no such container."""
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    found = await self._docker.containers.container(id_or_name).show()
        except Refused as exc:
            if exc.status == 404:
                return None
            raise
        with self._errors():
            state, config = found.get("State") or {}, found.get("Config") or {}
            return ContainerState(
                id=str(found.get("Id", "")),
                status=str(state.get("Status", "")),
                running=bool(state.get("Running")),
                exit_code=int(state.get("ExitCode") or 0),
                out_of_memory=bool(state.get("OOMKilled")),
                error=str(state.get("Error") or ""),
                labels=config.get("Labels") or {},
                stop_signal=str(config.get("StopSignal") or "SIGTERM"),
            )

    async def list(self, labels: Mapping[str, str]) -> dict[str, ContainerState]:
        """All containers that carry these labels, by id, running or not. Exit codes are not told here."""
        filters = json.dumps({"label": [f"{name}={value}" for name, value in labels.items()]})
        with self._errors():
            async with asyncio.timeout(_SHORT):
                found = await self._docker.containers.list(all="true", filters=filters)
            return {
                container.id: ContainerState(
                    id=container.id,
                    status=str(container["State"]),
                    running=container["State"] in ("running", "paused", "restarting"),
                    exit_code=0,
                    out_of_memory=False,
                    error="",
                    labels=container["Labels"] or {},
                    stop_signal="",
                )
                for container in found
            }

    async def unused_volumes(self, labels: Mapping[str, str]) -> set[str]:
        """Names of the volumes that carry these labels and belong to no container."""
        filters = {"dangling": ["true"], "label": [f"{name}={value}" for name, value in labels.items()]}
        with self._errors():
            async with asyncio.timeout(_SHORT):
                found = await self._docker.volumes.list(filters=filters)
            return {str(volume["Name"]) for volume in found["Volumes"] or ()}

    async def remove_volume(self, name: str) -> None:
        """One that is gone, or has a container again, is no error."""
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    await (await self._docker.volumes.get(name)).delete()
        except Refused as exc:
            if exc.status not in (404, 409):
                raise

    async def logs(self, id: str) -> AsyncIterator[str]:
        """What an ended container has said. No deadline."""
        with self._errors():
            async for piece in self._docker.containers.container(id).log(
                stdout=True, stderr=True, follow=True
            ):
                yield piece

    @asynccontextmanager
    async def ends(self, labels: Mapping[str, str], since: float) -> AsyncIterator[AsyncIterator[str]]:
        """Ids of containers that end, as the engine tells of it, from `since` (Unix seconds) on. The iterator ends
        when the connection does."""
        filters = {
            "type": ["container"],
            "event": ["die", "destroy"],
            "label": [f"{name}={value}" for name, value in labels.items()],
        }
        subscriber = self._docker.events.subscribe(create_task=False)
        reading = asyncio.create_task(
            self._docker.events.run(filters=json.dumps(filters), since=f"{since:.3f}"), name="docker events"
        )
        try:
            yield _ids(subscriber, reading, self._errors)
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.exception()  # already told by the iterator

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except aiodocker.DockerError as exc:
            words = " ".join(str(exc.message).split())
            if exc.status == _NOBODY:
                raise self._nobody(words) from exc
            raise Refused(exc.status, f"the Docker engine says: {words}") from exc
        except TimeoutError as exc:
            raise EngineUnavailable(
                f"the Docker engine at {self.host} does not answer in time", retryable=True
            ) from exc
        except (aiohttp.ClientError, OSError, EOFError) as exc:
            raise self._nobody(str(exc) or type(exc).__name__) from exc
        except (ValueError, TypeError, KeyError, AttributeError) as exc:  # an answer of another shape
            raise EngineUnavailable(
                f"the Docker engine at {self.host} has given an answer that cannot be read", retryable=True
            ) from exc

    def _nobody(self, words: str) -> EngineUnavailable:
        return EngineUnavailable(f"the Docker engine at {self.host} does not answer: {words}", retryable=True)


@asynccontextmanager
async def open_engine(host: str = "") -> AsyncIterator[Engine]:
    """A client for the time of the block; whether an engine answers shows at the first call. Raises `ConfigError` for
    an address that cannot be one."""
    where = host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT)
    try:
        docker = aiodocker.Docker(url=where, timeout=timeout)
    except (ValueError, aiodocker.DockerError) as exc:
        words = exc.message if isinstance(exc, aiodocker.DockerError) else exc
        raise ConfigError(
            f"TIPOFF_LAUNCHER_DOCKER_HOST (or DOCKER_HOST) {where!r}: {words}; like {DEFAULT_HOST} it should be"
        ) from exc
    async with docker:
        yield Engine(docker, where)


async def _ids(subscriber: Any, reading: asyncio.Task[None], errors: Any) -> AsyncIterator[str]:
    while (event := await subscriber.get()) is not None:
        yield str((event.get("Actor") or {}).get("ID", ""))
    with errors():
        await reading


def _archive(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        top = tarfile.TarInfo("/")  # the directory itself; the engine passes over "."
        top.type, top.mode = tarfile.DIRTYPE, 0o555
        top.uid = top.gid = _OWNER
        archive.addfile(top)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o444
            entry.uid = entry.gid = _OWNER
            archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()
