"""Watches one container to its end, copies its output and removes it; and knows all containers of this launcher."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tipoff_launcher.backends.docker.container_log import ContainerLog, ContainerLogs
from tipoff_launcher.backends.docker.engine import ContainerState, Engine
from tipoff_launcher.backends.interface import ExitStatus
from tipoff_orchestrator_client.base import OrchestratorError
from tipoff_shared.primitives.retry import Backoff, retry
from tipoff_shared.primitives.waiting import wait_for_event

log = logging.getLogger(__name__)

_KILL_AGAIN = 1.0
_RETRY_FIRST = 0.2
_REMOVE_TRIES = 5


class KnownContainers:
    """The containers that this launcher runs or creates, by id. All others with its labels are orphans, as soon as
    `recovered` is set: before that, an earlier launcher's containers are not known yet."""

    def __init__(self) -> None:
        self.recovered = False
        self._servers: dict[str, DockerServer] = {}
        self._creating: set[str] = set()

    def add(self, server: DockerServer) -> None:
        """Add a server that runs."""
        self._servers[server.native_id] = server

    def forget(self, container_id: str) -> None:
        """Remove a server that has ended."""
        self._servers.pop(container_id, None)

    def get(self, container_id: str) -> DockerServer | None:
        """The server of this container, or None."""
        return self._servers.get(container_id)

    def servers(self) -> list[DockerServer]:
        """Every running server."""
        return list(self._servers.values())

    @contextmanager
    def creating(self, container_id: str) -> Iterator[None]:
        """For the time of the block the container is being created, so it is no orphan."""
        self._creating.add(container_id)
        try:
            yield
        finally:
            self._creating.discard(container_id)

    def is_orphan(self, container_id: str) -> bool:
        """Whether the container belongs to no server of this launcher."""
        return self.recovered and container_id not in self._servers and container_id not in self._creating


class DockerServer:
    """The `RunningServer` of a container. ContainerWatch calls `wake` when the engine reports a change; the server
    then asks the engine for its state. It leaves `known` when it has ended."""

    def __init__(
        self, engine: Engine, container_id: str, log_file: Path, logs: ContainerLogs, known: KnownContainers
    ) -> None:
        self._engine = engine
        self._id = container_id
        self._log_file = log_file
        self._logs = logs
        self._known = known
        self._kill_at: float | None = None
        self._stop_signal_sent = False
        self._wake = asyncio.Event()

    @property
    def native_id(self) -> str:
        """The container's id."""
        return self._id

    def wake(self) -> None:
        """Look at the container's state now."""
        self._wake.set()

    def terminate(self, grace: float) -> None:
        """Let `wait` send the image's stop signal, and SIGKILL after `grace` seconds."""
        if self._kill_at is None:
            self._kill_at = asyncio.get_running_loop().time() + grace
            self._wake.set()

    async def kill(self) -> None:
        """Send SIGKILL to the container. Raises `OrchestratorError`."""
        await self._engine.signal(self._id, "SIGKILL")

    async def wait(self) -> ExitStatus:
        """Copy the container's output to its log, wait for its end and remove it. The server counts as running while
        the engine does not answer."""
        async with self._logs.log(self._id, self._log_file, self.wake) as output:
            state = await self._wait_for_end(output)
            if state is not None:
                await self._remove(output, state)
        self._known.forget(self._id)
        return _exit_status(state)

    async def _wait_for_end(self, output: ContainerLog) -> ContainerState | None:
        """The state in which it ended; None when somebody else has removed it."""
        tries = Backoff(_RETRY_FIRST)
        while True:
            self._wake.clear()
            try:
                state = await self._engine.inspect(self._id)
                if state is None or not state.running:
                    return state
                output.follow(terminal=state.terminal)
                pause = await self._carry_out_terminate(state)
                tries.reset()
            except OrchestratorError as exc:  # without an answer, the server counts as running
                tries.failed()
                pause = tries.pause()
                if tries.failures == 1:
                    log.warning("the state of container %s is unknown: %s", self._id[:12], exc)
            await wait_for_event(self._wake, pause)

    async def _carry_out_terminate(self, state: ContainerState) -> float | None:
        """Send the signal that is due. Returns the seconds until the next look; None: not before `wake`."""
        if self._kill_at is None:
            return None
        left = self._kill_at - asyncio.get_running_loop().time()
        if left <= 0:  # even if the stop signal could not be sent
            await self._engine.signal(self._id, "SIGKILL")
            return _KILL_AGAIN
        if not self._stop_signal_sent:
            await self._engine.signal(self._id, state.stop_signal)
            self._stop_signal_sent = True
        return left

    async def _remove(self, output: ContainerLog, state: ContainerState) -> None:
        """Complete the container's log, then remove it. ContainerWatch removes what cannot be removed now."""

        async def finish_and_remove() -> None:
            await output.finish(terminal=state.terminal)
            await self._engine.remove(self._id)

        def log_first(number: int, exc: Exception) -> None:
            if number == 1:
                log.warning("container %s has ended and is not removed yet: %s", self._id[:12], exc)

        try:
            await retry(
                finish_and_remove,
                tries=_REMOVE_TRIES,
                first_pause=_RETRY_FIRST,
                retry_if=lambda exc: isinstance(exc, OrchestratorError),
                on_failure=log_first,
            )
        except OrchestratorError as exc:
            log.warning("container %s cannot be removed: %s", self._id[:12], exc)


def _exit_status(state: ContainerState | None) -> ExitStatus:
    if state is None:
        return ExitStatus(None, "its container was removed by somebody else")
    code = state.exit_code
    if 128 < code <= 128 + signal.NSIG:  # how the engine reports a signal
        code = 128 - code
    if state.out_of_memory:
        return ExitStatus(
            code, "killed, because it used more memory than games.toml gives it ([game.docker] memory)"
        )
    if state.error:
        return ExitStatus(code, f"ended by the engine: {state.error}")
    return ExitStatus(code)
