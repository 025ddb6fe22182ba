"""Talks to the Docker engine: a thin layer over aiodocker, whose exceptions become two of ours.

    OrchestratorUnavailable
    └── EngineUnavailable   the engine does not answer, or not in time; retryable
    OrchestratorError
    └── EngineError         the engine refuses: `status` is HTTP's (404 not found, 409 conflict, 500 failed)

Every call except the streams (`pull`, `output`, `end_events`) has a deadline. Cancelling a call is safe, but the engine
may still carry it out.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiodocker
import aiohttp

from tipoff_launcher.backends.interface import PortInUse
from tipoff_orchestrator_client.base import NotConfigured, OrchestratorError, OrchestratorUnavailable
from tipoff_shared.errors import ConfigError
from tipoff_shared.primitives.text import describe, one_line

log = logging.getLogger(__name__)

DEFAULT_HOST = "unix:///var/run/docker.sock"

_CONNECT = 5.0
_CALL = 60.0
"""Seconds for a call that creates, starts or removes; a busy engine takes ten for a start."""
_SHORT = 15.0
"""Seconds for other calls."""
_SILENCE = 300.0
"""Seconds after which a container that says nothing is asked again, in case the connection is broken."""
_UNREACHABLE = 900
"""aiodocker's "status" for an engine that cannot be reached (aiodocker 0.27)."""
_FILE_OWNER = 64198
"""The uid of the files in `FILES_DIRECTORY`: no user of an image, so that no server can change them."""

_MESSAGE = 2000
"""Characters of the longest text of the engine that is kept."""

_PORT_TAKEN = ("port is already allocated", "address already in use", "ports are not available")
_CANNOT_RUN = (
    "executable file not found",
    "no such file or directory",
    "permission denied",
    "exec format error",
)


class EngineUnavailable(OrchestratorUnavailable):
    """The engine does not answer, or its answer cannot be read."""


class EngineError(OrchestratorError):
    """The engine refuses; its words are in the message, and `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message, retryable=status >= 500)
        self.status = status


def start_error(exc: EngineError, image: str) -> OrchestratorError:
    """What `exc` means for the creation or start of a container of `image`."""
    text = str(exc).lower()
    if any(words in text for words in _PORT_TAKEN):
        return PortInUse(str(exc), retryable=True)
    if exc.status == 404 and "no such image" in text:
        return OrchestratorUnavailable(f"image {image!r} is gone again: {exc}", retryable=True)
    if "runtime" in text and any(words in text for words in _CANNOT_RUN):
        return NotConfigured(f"image {image!r} cannot run its command: {exc}")
    if exc.status < 500 and exc.status != 409:
        return NotConfigured(str(exc))
    return OrchestratorUnavailable(str(exc), retryable=True)


@dataclass(frozen=True, slots=True)
class ContainerState:
    """The state of one container. `status`: created, running, paused, exited, dead, ..."""

    id: str
    status: str
    running: bool
    exit_code: int
    out_of_memory: bool
    error: str
    labels: Mapping[str, str]
    stop_signal: str
    terminal: bool = False


class Engine:
    """A client of one engine; use `open_engine`. `host` is its address. Every method raises `EngineUnavailable` and
    `EngineError`."""

    def __init__(self, docker: Any, host: str) -> None:
        self._docker = docker  # aiodocker is typed in part only
        self.host = host

    async def version(self) -> str:
        """The engine's version, for logs."""
        with self._errors():
            async with asyncio.timeout(_SHORT):
                found = await self._docker.version()
        return f"{found.get('Version', '?')} (API {found.get('ApiVersion', '?')})"

    async def has_network(self, name: str) -> bool:
        """Whether the engine has a network of this name."""
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    await (await self._docker.networks.get(name)).show()
        except EngineError as exc:
            if exc.status == 404:
                return False
            raise
        return True

    # Images.

    async def has_image(self, image: str) -> bool:
        """Whether the image is present."""
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    await self._docker.images.inspect(image)
        except EngineError as exc:
            if exc.status == 404:
                return False
            raise
        return True

    async def pull(self, image: str, auth: Mapping[str, str] | None) -> AsyncIterator[dict[str, Any]]:
        """Fetch an image; yields the engine's progress messages. No deadline."""
        with self._errors():
            async for line in self._docker.images.pull(image, auth=auth, stream=True):
                yield line

    # Containers.

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Create a container, which does not run yet; returns its id."""
        with self._errors():
            async with asyncio.timeout(_CALL):
                container = await self._docker.containers.create(config, name=name)
        return str(container.id)

    async def put_files(self, id: str, directory: str, files: Mapping[str, bytes]) -> None:
        """Write files into `directory`, on a volume of a container that does not run yet, for all its users to read."""
        with self._errors():
            async with asyncio.timeout(_CALL):
                await self._docker.containers.container(id).put_archive(directory, _archive(files))

    async def start(self, id: str) -> None:
        """Start a container that was created."""
        with self._errors():
            async with asyncio.timeout(_CALL):
                await self._docker.containers.container(id).start()

    async def signal(self, id: str, signal: str) -> None:
        """Send a signal to the container's first process. A container that has ended is no error."""
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    await self._docker.containers.container(id).kill(signal=signal)
        except EngineError as exc:
            if exc.status not in (404, 409):  # removed; not running
                raise

    async def remove(self, id_or_name: str) -> None:
        """Remove a container, running or not, with its volumes. A removed container is no error."""
        try:
            with self._errors():
                async with asyncio.timeout(_CALL):
                    await self._docker.containers.container(id_or_name).delete(force=True, v=True)
        except EngineError as exc:
            if exc.status not in (404, 409):  # already removed, or being removed
                raise

    async def inspect(self, id_or_name: str) -> ContainerState | None:
        """The container's state; None when there is no such container."""
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    found = await self._docker.containers.container(id_or_name).show()
        except EngineError as exc:
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
                terminal=bool(config.get("Tty")),
            )

    async def list(self, labels: Mapping[str, str]) -> dict[str, ContainerState]:
        """All containers that carry these labels, by id, running or not. Their exit codes are not filled in."""
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
        """The names of the volumes that carry these labels and belong to no container."""
        filters = {"dangling": ["true"], "label": [f"{name}={value}" for name, value in labels.items()]}
        with self._errors():
            async with asyncio.timeout(_SHORT):
                found = await self._docker.volumes.list(filters=filters)
            return {str(volume["Name"]) for volume in found["Volumes"] or ()}

    async def remove_volume(self, name: str) -> None:
        """Remove a volume. One that is removed already, or that a container uses, is no error."""
        try:
            with self._errors():
                async with asyncio.timeout(_SHORT):
                    await (await self._docker.volumes.get(name)).delete()
        except EngineError as exc:
            if exc.status not in (404, 409):
                raise

    async def output(self, id: str, *, since: str, follow: bool) -> AsyncGenerator[bytes]:
        """The output of a container from `since` (Unix seconds; "": all) on, each entry with its time, as the engine
        sends it (see output.py). With `follow` it goes on until the container ends, or until it has been silent for
        long; no deadline."""
        if self._docker.api_version == "auto":
            await self.version()  # finds out
        asked = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0"}
        if since:
            asked["since"] = since
        timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT, sock_read=_SILENCE)
        with self._errors():
            # Its own client: a client has a hundred connections, and no other call must wait for one of many streams.
            async with (
                aiodocker.Docker(url=self.host, api_version=self._docker.api_version) as docker,
                docker.session.get(
                    f"{docker.docker_host}/{docker.api_version}/containers/{id}/logs",
                    params=asked,
                    timeout=timeout,
                ) as response,
            ):
                if response.status != 200:
                    async with asyncio.timeout(_SHORT):
                        words = (await response.content.read(_MESSAGE)).decode(errors="replace")
                    raise EngineError(response.status, f"the Docker engine says: {one_line(words, _MESSAGE)}")
                pieces = response.content.iter_any()
                while True:
                    try:
                        piece = await anext(pieces, None)
                    except aiohttp.SocketTimeoutError:  # perhaps the connection is broken
                        if follow:
                            return
                        raise
                    if piece is None:
                        return
                    yield piece

    @asynccontextmanager
    async def end_events(self, labels: Mapping[str, str], since: float) -> AsyncIterator[AsyncIterator[str]]:
        """An iterator of the ids of containers that end, from `since` (Unix seconds) on, for the time of the block.
        It ends when the connection to the engine does."""
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
                reading.exception()  # the iterator has raised it

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except aiodocker.DockerError as exc:
            words = one_line(str(exc.message), _MESSAGE)
            if exc.status == _UNREACHABLE:
                raise self._unavailable(words) from exc
            raise EngineError(exc.status, f"the Docker engine says: {words}") from exc
        except TimeoutError as exc:
            raise EngineUnavailable(
                f"the Docker engine at {self.host} does not answer in time", retryable=True
            ) from exc
        except (aiohttp.ClientError, OSError, EOFError) as exc:
            raise self._unavailable(describe(exc)) from exc
        except (ValueError, TypeError, KeyError, AttributeError) as exc:  # the answer has an unexpected shape
            raise EngineUnavailable(
                f"the Docker engine at {self.host} gave an answer that cannot be read", retryable=True
            ) from exc

    def _unavailable(self, words: str) -> EngineUnavailable:
        return EngineUnavailable(f"the Docker engine at {self.host} does not answer: {words}", retryable=True)


@asynccontextmanager
async def open_engine(host: str = "") -> AsyncIterator[Engine]:
    """A client for the time of the block; it does not connect before its first call. Raises `ConfigError` for an
    address that no engine can have."""
    where = host or os.environ.get("DOCKER_HOST") or DEFAULT_HOST
    timeout = aiohttp.ClientTimeout(sock_connect=_CONNECT)
    try:
        docker = aiodocker.Docker(url=where, timeout=timeout)
    except (ValueError, aiodocker.DockerError) as exc:
        words = exc.message if isinstance(exc, aiodocker.DockerError) else exc
        raise ConfigError(
            f"TIPOFF_LAUNCHER_DOCKER_HOST (or DOCKER_HOST) {where!r}: {words}; expected is one like {DEFAULT_HOST}"
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
        top = tarfile.TarInfo("/")  # the directory itself; the engine skips "."
        top.type, top.mode = tarfile.DIRTYPE, 0o555
        top.uid = top.gid = _FILE_OWNER
        archive.addfile(top)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o444
            entry.uid = entry.gid = _FILE_OWNER
            archive.addfile(entry, io.BytesIO(content))
    return target.getvalue()
