"""One container: watched to its end, its last words kept, then removed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from tipoff_launcher.backends import server_log
from tipoff_launcher.backends.docker.engine import ContainerState, Engine, EngineUnavailable
from tipoff_launcher.backends.interface import Exit
from tipoff_orchestrator_client.base import OrchestratorError

log = logging.getLogger(__name__)

_KILL_AGAIN = 1.0
_ASK_FIRST, _ASK_AT_MOST = 0.2, 5.0
_LOG_DEADLINE = 20.0
_CLEAR_TRIES = 5


class DockerServer:
    """`wake` is called by whoever hears that something happened to it; what happened is then asked. `forget` is
    called when it is over."""

    def __init__(
        self,
        engine: Engine,
        container_id: str,
        log_file: Path,
        max_log_bytes: int,
        *,
        forget: Callable[[], object] = lambda: None,
    ) -> None:
        self._engine = engine
        self._id = container_id
        self._log_file = log_file
        self._max_log_bytes = max_log_bytes
        self._forget = forget
        self._kill_at: float | None = None
        self._asked = False
        self._wake = asyncio.Event()

    @property
    def native_id(self) -> str:
        return self._id

    def wake(self) -> None:
        self._wake.set()

    def terminate(self, grace: float) -> None:
        if self._kill_at is None:
            self._kill_at = asyncio.get_running_loop().time() + grace
            self._wake.set()

    async def kill(self) -> None:
        await self._engine.signal(self._id, "SIGKILL")

    async def ended(self) -> Exit:
        tries = 0
        while True:
            self._wake.clear()
            try:
                state = await self._engine.look(self._id)
                if state is None:
                    self._forget()
                    return Exit(None, "its container was removed by somebody else")
                if not state.running:
                    break
                pause = await self._carry_out_terminate(state)
                tries = 0
            except OrchestratorError as exc:  # an engine that is away says nothing of the server
                tries += 1
                pause = min(_ASK_FIRST * 2**tries, _ASK_AT_MOST)
                if tries == 1:
                    log.warning("whether container %s lives is not known: %s", self._id[:12], exc)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
        await self._clear_away()
        self._forget()
        return _exit_of(state)

    async def _carry_out_terminate(self, state: ContainerState) -> float | None:
        """Seconds until it is to be looked at again; None: when something happens."""
        if self._kill_at is None:
            return None
        left = self._kill_at - asyncio.get_running_loop().time()
        if left <= 0:  # whatever has become of the signal before
            await self._engine.signal(self._id, "SIGKILL")
            return _KILL_AGAIN
        if not self._asked:
            await self._engine.signal(self._id, state.stop_signal)
            self._asked = True
        return left

    async def _clear_away(self) -> None:
        """What it has said is kept, then it is removed. What cannot be removed now is left to the watch, which finds it
        by its labels."""
        for number in range(1, _CLEAR_TRIES + 1):
            try:
                await self._keep_log()
                await self._engine.remove(self._id)
                return
            except EngineUnavailable as exc:
                if number == 1:
                    log.warning("container %s has ended and is not removed yet: %s", self._id[:12], exc)
            except OrchestratorError as exc:
                log.warning("container %s cannot be removed: %s", self._id[:12], exc)
            await asyncio.sleep(min(_ASK_FIRST * 2**number, _ASK_AT_MOST))

    async def _keep_log(self) -> None:
        """Raises `EngineUnavailable`; any other trouble costs the log."""
        try:
            descriptor = server_log.open_log(self._log_file)
            try:
                os.ftruncate(descriptor, 0)  # of an attempt that broke off
                async with asyncio.timeout(_LOG_DEADLINE):
                    async for piece in self._engine.logs(self._id):
                        os.write(descriptor, piece.encode(errors="replace"))
                        server_log.bound(self._log_file, self._max_log_bytes)
            finally:
                os.close(descriptor)
        except EngineUnavailable:
            raise
        except (OrchestratorError, OSError, TimeoutError) as exc:
            log.warning("the log of container %s is lost: %s", self._id[:12], str(exc) or type(exc).__name__)


def _exit_of(state: ContainerState) -> Exit:
    code = state.exit_code
    if 128 < code <= 128 + signal.NSIG:  # the engine's way to say that a signal ended it
        code = 128 - code
    if state.out_of_memory:
        return Exit(
            code, "killed, because it used more memory than games.toml gives it ([game.docker] memory)"
        )
    if state.error:
        return Exit(code, f"ended by the engine: {state.error}")
    return Exit(code)
